// code-cache.cjs BUNDLE CACHE '[["ARGUMENT", ...], ...]': runs a bundle once for each list of arguments
// and writes V8's code cache of it, with the functions that those runs have compiled. The build starts it.
"use strict";
const fs = require("node:fs");
const { createRequire } = require("node:module");
const path = require("node:path");
const vm = require("node:vm");

const [bundle, cache, warmUp] = process.argv.slice(2);
// The wrapper is the loader's (tools/build.ts), letter by letter: V8 compares the length of the source.
const script = new vm.Script(
  "(function (exports, require, module, __filename, __dirname) { " +
    fs.readFileSync(bundle, "utf8") +
    "\n})",
  { filename: bundle },
);
process.stdout.write = () => true;
process.stderr.write = () => true;
const exit = process.exit.bind(process);
process.exit = (code) => {
  process.exitCode = code;
};
const run = script.runInThisContext();
for (const words of JSON.parse(warmUp)) {
  process.argv = [process.execPath, bundle, ...words];
  const module = { exports: {} };
  run(module.exports, createRequire(bundle), module, bundle, path.dirname(bundle));
}
// The programs are asynchronous; what they compile within this time is in the cache.
setTimeout(() => {
  fs.writeFileSync(`${cache}.new`, script.createCachedData());
  fs.renameSync(`${cache}.new`, cache);
  exit(0);
}, 500);
