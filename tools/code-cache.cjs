// code-cache.cjs BUNDLE CACHE '[["ARGUMENT", ...], ...]': runs a bundle once for each list of arguments
// and writes V8's code cache of it, with the functions that those runs have compiled. The build starts it.
// The argument "@sleeper" becomes the pid of a small tree that is there to be saved and brought back; where
// that is not allowed (no root, no ptrace), those runs fail and the cache is only smaller.
"use strict";
const { spawn } = require("node:child_process");
const fs = require("node:fs");
const { createRequire } = require("node:module");
const path = require("node:path");
const vm = require("node:vm");

/** Longest that one run may take. */
const RUN_MS = 3000;

const [bundle, cache, warmUp] = process.argv.slice(2);
// The wrapper is the loader's (tools/build.ts), letter by letter: V8 compares the length of the source.
const script = new vm.Script(
  "(function (exports, require, module, __filename, __dirname) { " +
    fs.readFileSync(bundle, "latin1") +
    "\n})",
  { filename: bundle },
);
process.stdout.write = () => true;
process.stderr.write = () => true;
const exit = process.exit.bind(process);
const run = script.runInThisContext();

void main();

async function main() {
  const sleeper = spawn("sh", ["-c", "sleep 60 & wait"], { detached: true, stdio: "ignore" });
  sleeper.unref();
  await new Promise((resolve) => setTimeout(resolve, 100));
  for (const words of JSON.parse(warmUp)) await runOnce(words, String(sleeper.pid));
  try {
    process.kill(-sleeper.pid, "SIGKILL");
  } catch {
    // It went already.
  }
  fs.writeFileSync(`${cache}.new`, script.createCachedData());
  fs.renameSync(`${cache}.new`, cache);
  exit(0);
}

/** Runs the program until it says that it is done: by process.exit, by an exit code, or by its time being up. */
function runOnce(words, sleeper) {
  return new Promise((resolve) => {
    process.exit = (code) => {
      process.exitCode = code;
      setImmediate(resolve);
    };
    process.exitCode = undefined;
    process.argv = [
      process.execPath,
      bundle,
      ...words.map((word) => word.replace("@sleeper", sleeper)),
    ];
    const module = { exports: {} };
    run(module.exports, createRequire(bundle), module, bundle, path.dirname(bundle));
    const begun = Date.now();
    const timer = setInterval(() => {
      if (process.exitCode === undefined && Date.now() - begun < RUN_MS) return;
      clearInterval(timer);
      resolve();
    }, 5);
  });
}
