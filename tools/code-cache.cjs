// code-cache.cjs BUNDLE CACHE '[["ARGUMENT", ...], ...]': runs a bundle once for each list of arguments
// and writes V8's code cache of it, with the functions that those runs have compiled. The build starts it.
// The argument "@sleeper" becomes the pid of a small tree that is there to be saved and brought back, "@container"
// that of a process in namespaces of its own; where that is not allowed (no root, no ptrace), those runs fail and the
// cache is only smaller, which is told.
"use strict";
const { spawn } = require("node:child_process");
const fs = require("node:fs");
const { createRequire } = require("node:module");
const path = require("node:path");
const vm = require("node:vm");

/** Longest that one run may take. */
const RUN_MS = 3000;

const [bundle, cache, warmUp] = process.argv.slice(2);
const script = new vm.Script(fs.readFileSync(bundle, "latin1"), { filename: bundle });
process.stdout.write = () => true;
process.stderr.write = () => true;
const exit = process.exit.bind(process);
const run = script.runInThisContext();

void main();

async function main() {
  // With a pipe, which most programs have.
  const tree = "sleep 60 | cat & wait";
  const sleeper = spawn("sh", ["-c", tree], { detached: true, stdio: "ignore" });
  sleeper.unref();
  await new Promise((resolve) => setTimeout(resolve, 100));
  const container = startContainer();
  await new Promise((resolve) => setTimeout(resolve, 300));
  const pids = { "@sleeper": String(sleeper.pid), "@container": childOf(container.pid) };
  for (const words of JSON.parse(warmUp)) {
    const code = await runOnce(words.map((word) => pids[word] ?? word));
    if (code !== 0)
      fs.writeSync(2, `the code cache is smaller: ${words.join(" ")} ended with ${code}\n`);
    endRestored(words);
  }
  end(-sleeper.pid);
  end(-container.pid);
  fs.writeFileSync(`${cache}.new`, script.createCachedData());
  fs.renameSync(`${cache}.new`, cache);
  exit(0);
}

/** What a container's init is to the kernel: namespaces of its own, a fresh /proc, a tmpfs. */
function startContainer() {
  const mounts = "mount --make-rprivate / && mount -t proc proc /proc && mount -t tmpfs tmpfs /mnt";
  const namespaces = ["-m", "-p", "-f", "-n", "-i", "-u", "--kill-child"];
  const words = [...namespaces, "setsid", "sh", "-c", `${mounts}; exec sleep 60`];
  const started = spawn("unshare", words, { detached: true, stdio: "ignore" });
  started.on("error", () => undefined);
  started.unref();
  return started;
}

/** The process that unshare has made; none where it was not allowed to. */
function childOf(pid) {
  try {
    return fs.readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
  } catch {
    return "";
  }
}

/** Ends what a restore has left running: its pid is in the file that it was told to write. */
function endRestored(words) {
  const at = words.indexOf("--pidfile");
  if (at < 0) return;
  try {
    const pid = Number(fs.readFileSync(words[at + 1], "utf8"));
    fs.rmSync(words[at + 1]);
    end(-pid);
    end(pid);
  } catch {
    // It was not restored.
  }
}

function end(pid) {
  try {
    if (Number.isInteger(pid) && pid !== 0) process.kill(pid, "SIGKILL");
  } catch {
    // It went already.
  }
}

/** Runs the program until it says that it is done: by process.exit, by an exit code, or by its time being up. Resolves with its exit code. */
function runOnce(words) {
  return new Promise((resolve) => {
    process.exit = (code) => {
      process.exitCode = code;
      setImmediate(() => resolve(code));
    };
    process.exitCode = undefined;
    process.argv = [process.execPath, bundle, ...words];
    const module = { exports: {} };
    run(module.exports, createRequire(bundle), module, bundle, path.dirname(bundle));
    const begun = Date.now();
    const timer = setInterval(() => {
      if (process.exitCode === undefined && Date.now() - begun < RUN_MS) return;
      clearInterval(timer);
      resolve(process.exitCode);
    }, 5);
  });
}
