// Starting a command for a name. It gets a session of its own, its output goes to a log, and it lives in pid, IPC and mount namespaces of
// its own: its numbers are free wherever and whenever it is brought back, it sees none of the host's System V IPC, and what it leaves
// behind ends with it. Of its mounts only /proc is another than the host's (see objects/namespaces/proc-mount.ts).

import { spawn, type ChildProcess } from "node:child_process";
import { accessSync, closeSync, constants, openSync, statSync } from "node:fs";
import { delimiter, join } from "node:path";
import type { Writable } from "node:stream";
import { setTimeout } from "node:timers/promises";
import { RepriseError } from "../errors.ts";
import { readChildrenIfAlive } from "../proc/children.ts";
import { readCmdlineIfAlive } from "../proc/cmdline.ts";
import { readFdNumbers } from "../proc/fd.ts";
import { F_SETFD, FD_CLOEXEC } from "../sys/abi/fcntl.ts";
import { CLONE_NEWIPC, CLONE_NEWPID } from "../sys/abi/sched.ts";
import { syscall, trySyscall } from "../sys/ffi.ts";
import { startTimeOf, type Placement } from "./tasks.ts";

const CALLER_PREFIX = "REPRISE_CALLER_";
/** For the first process of the namespace, and for the command to be itself. */
const PATIENCE_MS = 10_000;
const POLL_MS = 1;

/**
 * The first process of the namespace, a shell. It is no part of the task: a restore makes another one. It waits for the command, takes in
 * whoever loses their parent, and ends as the command does, and with it everything. Descriptor 3 says when to begin, 4 is the log. Its
 * own words (a shell tells of who was killed) go nowhere.
 */
const INIT = '(read -r begin <&3 && exec setsid "$@" >&4 2>&1 3<&- 4>&-); exit $?';
const OWN_PROC = ["--mount", "--propagation", "slave", "--mount-proc", "--"];

const ON_HOST = "With --host it runs among the host's processes, without namespaces of its own.";

/** A command that runs. */
export interface Started {
  readonly pid: number;
  /** As startTimeOf. */
  readonly startTime: number;
}

/**
 * Starts a command with its output in a log.
 *
 * @throws RepriseError BAD_ARGUMENT when it cannot be started
 */
export async function startCommand(
  command: readonly string[],
  options: { readonly log: string; readonly placement: Placement },
): Promise<Started> {
  const [program = ""] = command;
  const log = openLog(options.log);
  closeOnExec();
  try {
    return await (options.placement === "host"
      ? startOnHost(command, log)
      : startApart(command, log));
  } catch (error) {
    if (error instanceof RepriseError) throw error;
    throw new RepriseError("BAD_ARGUMENT", `cannot start ${program}: ${describe(error)}`, {
      hint: "The command must be in PATH or be a path.",
      cause: error,
    });
  } finally {
    closeSync(log);
  }
}

/** Opens the log for appending: who restores need not care what was written meanwhile. */
export function openLog(path: string): number {
  return openSync(path, "a", 0o600);
}

async function startOnHost(
  [program = "", ...args]: readonly string[],
  log: number,
): Promise<Started> {
  const child = spawn(program, args, {
    detached: true,
    stdio: ["ignore", log, log],
    env: callerEnvironment(process.env),
  });
  await spawned(child);
  child.unref();
  const pid = child.pid ?? 0;
  return { pid, startTime: startTimeOf(pid) };
}

async function startApart(command: readonly string[], log: number): Promise<Started> {
  const [program = ""] = command;
  const env = callerEnvironment(process.env);
  // The shell would say it to nobody.
  findProgram(program, env["PATH"]);
  const init = inOwnNamespaces(() =>
    spawn("unshare", [...OWN_PROC, "/bin/sh", "-c", INIT, "init", ...command], {
      detached: true,
      stdio: ["ignore", "ignore", "ignore", "pipe", log],
      env,
    }),
  );
  await spawned(init).catch((error: unknown) => {
    const why = `unshare(1) cannot be started: ${describe(error)}`;
    throw unstarted(program, why);
  });
  const parent = init.pid ?? 0;
  const pid = await soon(program, () => {
    const children = readChildrenIfAlive(parent);
    if (children === undefined) throw unstarted(program);
    return children[0];
  });
  const started = { pid, startTime: startTimeOf(pid) };
  const waiting = readCmdlineIfAlive(pid)?.join("\0");
  const begin = init.stdio[3] as Writable;
  await new Promise<void>((resolve) => begin.end("\n", resolve));
  begin.destroy();
  // Until then it is a shell, and then setsid, which becomes the command.
  await soon(program, () => {
    const words = readCmdlineIfAlive(pid);
    const isOther =
      words?.join("\0") !== waiting && (words?.[0] !== "setsid" || program === "setsid");
    return isOther ? true : undefined;
  });
  init.unref();
  return started;
}

/** Whom this thread makes meanwhile is the first in a pid namespace, in an IPC namespace of its own. No thread can be made then. */
function inOwnNamespaces(make: () => ChildProcess): ChildProcess {
  const home = openNamespaces();
  try {
    syscall("unshare", CLONE_NEWPID | CLONE_NEWIPC);
    try {
      return make();
    } finally {
      for (const { fd, kind } of home) syscall("setns", fd, kind);
    }
  } catch (error) {
    if (!(error instanceof RepriseError)) throw error;
    throw new RepriseError("SYSCALL", `cannot make namespaces for a command: ${error.message}`, {
      hint: ON_HOST,
      cause: error,
    });
  } finally {
    for (const { fd } of home) closeSync(fd);
  }
}

function openNamespaces(): { readonly fd: number; readonly kind: number }[] {
  return [
    { fd: openSync("/proc/self/ns/pid", "r"), kind: CLONE_NEWPID },
    { fd: openSync("/proc/self/ns/ipc", "r"), kind: CLONE_NEWIPC },
  ];
}

async function spawned(child: ChildProcess): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    child.once("spawn", resolve);
    child.once("error", reject);
  });
}

/** Waits until something is there. */
async function soon<T>(program: string, look: () => T | undefined): Promise<T> {
  const deadline = performance.now() + PATIENCE_MS;
  for (;;) {
    const found = look();
    if (found !== undefined) return found;
    if (performance.now() > deadline) throw unstarted(program);
    await setTimeout(POLL_MS);
  }
}

function unstarted(program: string, why = "no namespaces could be made for it"): RepriseError {
  return new RepriseError("BAD_ARGUMENT", `cannot start ${program}: ${why}`, { hint: ON_HOST });
}

/** As execvp(3) looks for it. Throws what the system says of the last place where it is. */
function findProgram(program: string, path = "/usr/bin:/bin"): void {
  const places = program.includes("/")
    ? [program]
    : path.split(delimiter).map((directory) => join(directory, program));
  let failure: unknown;
  for (const place of places) {
    try {
      accessSync(place, constants.X_OK);
      if (statSync(place).isFile()) return;
      failure = Object.assign(new Error(`${place} is no file`), { code: "EACCES" });
    } catch (error) {
      if (failure === undefined || describe(error) !== "ENOENT") failure = error;
    }
  }
  throw failure;
}

/** A named task has nothing of its caller's open: whatever that is, it could not be saved or brought back. */
function closeOnExec(): void {
  for (const fd of readFdNumbers(process.pid)) {
    if (fd > 2) trySyscall("fcntl", fd, F_SETFD, FD_CLOEXEC);
  }
}

/** The launcher keeps Node's variables from our Node; the command gets them as its caller set them. */
function callerEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const pairs = Object.entries(env).map(([name, value]) => [
    name.startsWith(CALLER_PREFIX) ? name.slice(CALLER_PREFIX.length) : name,
    value,
  ]);
  return Object.fromEntries(pairs) as NodeJS.ProcessEnv;
}

function describe(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : String(error);
}
