"use strict";
// What the scripts of all pages begin with; a page's own scripts come after it in the same element.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const make = (tag, properties, parent) => parent.appendChild(Object.assign(document.createElement(tag), properties));
