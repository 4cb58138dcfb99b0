def test_a(trained): print(trained.errors)
def test_b(command, trained):
    o = command("stage=evaluate", f"checkpoint={trained.path}")
    print(o.errors, o.output, o.metrics)
def test_c(command):
    o = command("stage=pipeline", "trainer.max_steps=2")
    print(o.errors, o.output, o.metrics)
def test_d(command, trained):
    o = command("stage=export", f"checkpoint={trained.path}")
    print(o.errors, o.output, o.metrics)
