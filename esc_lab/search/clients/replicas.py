"""Which of several servers with the same model gets a call: a tree stays with its server while that is well."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from esc_lab.errors import UserError, list_names

if TYPE_CHECKING:
    from esc_lab.search.clients.replica import Replica

log = logging.getLogger(__name__)
# Of the trees of one server, what it may have at most where they lie evenly.
_UNEVEN = 1.25


class Replicas:
    """Servers that serve one model.

    The calls of a group share the beginnings of their prompts, which a server keeps, so they go to the same one: the
    first by rendezvous hashing (Thaler and Ravishankar 1998), whose choice for other groups does not change when a
    server goes, and comes again. Where it has 1.25 times its share of the groups already, the next has it (bounded
    loads, Mirrokni et al. 2018). A call without a group goes where fewest are.
    """

    def __init__(self, servers: Sequence[Replica], model: str) -> None:
        self.servers, self._model = servers, model
        self._orders: dict[str, list[Replica]] = {}
        self._homes: Counter[str] = Counter()
        self._checked: dict[str, dict[str, int]] = {}
        self._begun, self._checking = False, asyncio.Lock()

    def has_other(self, server: Replica) -> bool:
        """Whether another server is well."""
        now = asyncio.get_running_loop().time()
        return any(other is not server and other.down_until <= now for other in self.servers)

    async def choose(self, group: str) -> tuple[Replica, bool]:
        """The server for a call of a group, and whether the call is to wait there even if it goes down.

        Raises:
            UserError: it serves another model than it should, or than the others.
        """
        if len(self.servers) == 1:
            return self.servers[0], True
        async with self._checking:  # all of them, before anything is paid for
            if not self._begun:
                await asyncio.gather(*(server.list_models() for server in self.servers))
                for server in self.servers:
                    await self._check(server)
                self._begun = True
        while True:
            now = asyncio.get_running_loop().time()
            order = self._order(group) if group else sorted(self.servers, key=lambda server: server.load)
            well = [server for server in order if server.down_until <= now]
            server = well[0] if well else min(order, key=lambda server: server.down_until)
            trial = server.begin_trial()
            if trial and well:  # started again, it may serve another model
                server.forget_models()
                self._checked.pop(server.url, None)
            waits = trial or not well
            if server.url in self._checked or await self._check(server) or not well:
                return server, waits

    def _order(self, group: str) -> list[Replica]:
        if group not in self._orders:
            ranked = sorted(self.servers, key=lambda server: hashlib.sha256(f"{server.url} {group}".encode()).digest())
            most = math.ceil(_UNEVEN * (len(self._orders) + 1) / len(self.servers))
            home = next(server for server in ranked if self._homes[server.url] < most)
            self._homes[home.url] += 1
            self._orders[group] = [home, *(server for server in ranked if server is not home)]
        return self._orders[group]

    async def _check(self, server: Replica) -> bool:
        """Whether it is there. Its model has to be that of the others, as far as it says."""
        listed = await server.list_models()
        if listed is None:
            return False
        # An adapter is asked for by its own name, or, of SGLang, as MODEL:ADAPTER.
        name = next((name for name in (self._model, self._model.rpartition(":")[0]) if name in listed), None)
        if listed and name is None:
            what = f"it does not serve '{self._model}', but {list_names(sorted(listed), 5)}"
            fix = "serve the same model under the same name at each base_url (--served-model-name, --alias)"
            raise UserError(what, where=server.url, fix=fix)
        if not listed and server.url not in self._checked:
            log.warning("%s does not list its models, so nobody knows whether it serves '%s'", server.url, self._model)
        sizes = listed.get(name or "", {})
        for url, others in self._checked.items():
            differing = [key for key in sizes if key in others and sizes[key] != others[key]]
            if differing:
                key = differing[0]
                what = f"its '{self._model}' has {key}={sizes[key]}, and that of {url} has {others[key]}"
                raise UserError(what, where=server.url, fix="serve the same model at each base_url")
        self._checked[server.url] = sizes
        return True
