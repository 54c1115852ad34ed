// Drives the C programs in test/programs: compiles them on demand, starts one in a session and a
// directory of its own, waits for its `ready` line, asks it to check itself, and cleans up by pid.
// The protocol is told in test/programs/README.md.

import { execFileSync, spawn } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  closeSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { RepriseError } from "../../src/errors.ts";

const SOURCES = fileURLToPath(new URL("../programs/", import.meta.url));
const BUILD = fileURLToPath(new URL("../../build/programs/", import.meta.url));
const COMPILER_FLAGS = ["-O1", "-g", "-Wall", "-Wextra", "-pthread"];
const POLL_MS = 2;

/** What a program said about itself in the end. */
export type Verdict = "pass" | { readonly fail: string };

export interface StartOptions {
  /** Working directory of the program; its output goes to `out` in it. */
  readonly dir: string;
  /** Added to our environment. `{ BREAK: "1" }` makes the program spoil its own state. */
  readonly env?: Readonly<Record<string, string>>;
  /** User and group that it runs as. @default ours */
  readonly user?: number;
}

export interface RunningProgram {
  readonly name: string;
  /** Leader of a session of its own. */
  readonly pid: number;
  readonly dir: string;
  readonly outFile: string;
  /** Resolves when the program has set up its state. Throws when it fails, or after `timeoutMs`. */
  waitReady(timeoutMs?: number): Promise<void>;
  /** Sends SIGUSR1; resolves with the next line: `ok N` or `fail: reason`. */
  ask(timeoutMs?: number): Promise<string>;
  /** Sends SIGTERM; resolves with the last word. */
  finish(timeoutMs?: number): Promise<Verdict>;
}

/** Names of all programs, without `.c`, in order. */
export function programNames(): string[] {
  return readdirSync(SOURCES)
    .filter((name) => name.endsWith(".c"))
    .map((name) => name.slice(0, -2))
    .sort();
}

/** Whether BREAK=1 makes this program spoil its own state. */
export function canBreak(name: string): boolean {
  return /\btamper = /.test(readFileSync(join(SOURCES, `${name}.c`), "utf8"));
}

/**
 * Path of the compiled program; compiles when it is older than its source or a header.
 * Throws with the compiler's words when it does not compile; a warning is a failure.
 */
export function compileProgram(name: string): string {
  const source = join(SOURCES, `${name}.c`);
  const binary = join(BUILD, name);
  if (existsSync(binary) && modified(binary) > Math.max(modified(source), newestHeader())) {
    return binary;
  }
  mkdirSync(BUILD, { recursive: true });
  // Compiled beside and renamed: another test run may be executing the old one.
  const fresh = `${binary}.${process.pid}`;
  execFileSync("gcc", [...COMPILER_FLAGS, "-Werror", "-o", fresh, source], { stdio: "pipe" });
  renameSync(fresh, binary);
  return binary;
}

/** A new directory for one program; the caller removes it with `removeDir`. */
export function makeDir(name: string): string {
  return mkdtempSync(join(tmpdir(), `reprise-${name}-`));
}

/** Removes a directory of `makeDir` with all that is in it. */
export function removeDir(dir: string): void {
  rmSync(dir, { recursive: true, force: true });
}

/**
 * Starts a program in a session of its own, with stdin from /dev/null and stdout and stderr appended
 * to `dir/out`. It is detached: it outlives us unless `killProgram` ends it.
 */
export async function startProgram(
  name: string,
  args: readonly string[],
  options: StartOptions,
): Promise<RunningProgram> {
  const binary = compileProgram(name);
  const outFile = join(options.dir, "out");
  const out = openSync(outFile, "a");
  try {
    // node's `detached` calls setsid in the child before it executes the program.
    const child = spawn(binary, args, {
      cwd: options.dir,
      detached: true,
      stdio: ["ignore", out, out],
      env: { ...process.env, ...options.env },
      ...(options.user === undefined ? {} : { uid: options.user, gid: options.user }),
    });
    await new Promise<void>((resolve, reject) => {
      child.once("spawn", resolve);
      child.once("error", reject);
    });
    child.unref();
    if (child.pid === undefined) throw programError(`cannot start ${name}`, outFile);
    return attachProgram(name, child.pid, options.dir);
  } finally {
    closeSync(out);
  }
}

/**
 * The handle of a program that runs already, for example one that was restored: `pid` as seen from
 * here, `dir` the directory that it was started in. Lines that it printed before are still there.
 */
export function attachProgram(name: string, pid: number, dir: string): RunningProgram {
  const outFile = join(dir, "out");
  return {
    name,
    pid,
    dir,
    outFile,
    async waitReady(timeoutMs = 15_000): Promise<void> {
      const line = await nextLine(
        outFile,
        { after: 0, timeoutMs, pid },
        /^(ready|fail: .*|pass)$/m,
      );
      if (line !== "ready") throw programError(`${name} did not get ready: ${line}`, outFile);
    },
    async ask(timeoutMs = 20_000): Promise<string> {
      const after = readOut(outFile).length;
      process.kill(pid, "SIGUSR1");
      return nextLine(outFile, { after, timeoutMs, pid }, /^(ok \d+|fail: .*)$/m);
    },
    async finish(timeoutMs = 20_000): Promise<Verdict> {
      const after = readOut(outFile).length;
      process.kill(pid, "SIGTERM");
      return toVerdict(await nextLine(outFile, { after, timeoutMs, pid }, /^(pass|fail: .*)$/m));
    },
  };
}

/**
 * Waits for the last word of a program that was told to finish, or for the first failure.
 * Throws after `timeoutMs`, with the output so far.
 */
export async function verdictOf(outFile: string, timeoutMs: number): Promise<Verdict> {
  return toVerdict(await nextLine(outFile, { after: 0, timeoutMs }, /^(pass|fail: .*)$/m));
}

/**
 * Kills the program and all that came from it, each by its pid: its descendants, the members of its
 * session, and whoever works in its directory. Resolves when none is left but zombies of others.
 */
export async function killProgram(program: RunningProgram): Promise<void> {
  for (let round = 0; round < 200; round += 1) {
    const pids = relatedPids(program);
    if (pids.length === 0) return;
    for (const pid of pids) {
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // It went away by itself.
      }
    }
    await sleep(5);
  }
  throw programError(`cannot kill ${program.name} (pid ${program.pid})`, program.outFile);
}

interface LineWait {
  /** Length of the output that does not count. */
  readonly after: number;
  readonly timeoutMs: number;
  /** Its death ends the wait. */
  readonly pid?: number;
}

async function nextLine(outFile: string, wait: LineWait, pattern: RegExp): Promise<string> {
  const end = Date.now() + wait.timeoutMs;
  for (;;) {
    // Looked at before the output is read: the last words of the dead still count.
    const dead = wait.pid !== undefined && !isAlive(wait.pid);
    const text = readOut(outFile).slice(wait.after);
    const complete = text.slice(0, text.lastIndexOf("\n") + 1);
    const line = pattern.exec(complete)?.[1];
    if (line !== undefined) return line;
    if (dead) throw programError(`process ${wait.pid} ended without a word`, outFile);
    if (Date.now() > end) {
      throw programError(`nothing like ${pattern} came in ${wait.timeoutMs} ms`, outFile);
    }
    await sleep(POLL_MS);
  }
}

function toVerdict(line: string): Verdict {
  return line === "pass" ? "pass" : { fail: line.replace(/^fail: /, "") };
}

function programError(text: string, outFile: string): RepriseError {
  return new RepriseError("INTERNAL", text, { hint: `Its output so far: ${readOut(outFile)}` });
}

function readOut(outFile: string): string {
  return existsSync(outFile) ? readFileSync(outFile, "latin1") : "";
}

function modified(path: string): number {
  return statSync(path).mtimeMs;
}

function newestHeader(): number {
  const headers = readdirSync(SOURCES).filter((name) => name.endsWith(".h"));
  return Math.max(...headers.map((name) => modified(join(SOURCES, name))));
}

interface TaskLine {
  readonly pid: number;
  readonly state: string;
  readonly parent: number;
  readonly session: number;
}

function taskLine(pid: number): TaskLine | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    const [first = "", parent, , session] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    // A process lives on without its first thread as long as there are others.
    const isLeaderless = first === "Z" && readdirSync(`/proc/${pid}/task`).length > 1;
    const state = isLeaderless ? "S" : first;
    return { pid, state, parent: Number(parent), session: Number(session) };
  } catch {
    return undefined;
  }
}

function isAlive(pid: number): boolean {
  const task = taskLine(pid);
  return task !== undefined && task.state !== "Z" && task.state !== "X";
}

function relatedPids(program: RunningProgram): number[] {
  const tasks = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map((name) => taskLine(Number(name)))
    .filter((task) => task !== undefined);
  const related = new Set<number>([program.pid]);
  // A child may stand before its parent in the list: go round until nothing is added.
  for (let size = 0; size !== related.size;) {
    size = related.size;
    for (const task of tasks) {
      if (related.has(task.parent) || task.session === program.pid) related.add(task.pid);
    }
  }
  for (const task of tasks) if (worksIn(task.pid, program.dir)) related.add(task.pid);
  return tasks
    .filter((task) => related.has(task.pid) && task.state !== "Z" && task.pid !== process.pid)
    .map((task) => task.pid);
}

function worksIn(pid: number, dir: string): boolean {
  try {
    const cwd = readlinkSync(`/proc/${pid}/cwd`);
    return cwd === dir || cwd.startsWith(`${dir}/`);
  } catch {
    return false;
  }
}
