// Random combinations of kernel state through dumps and restores: what a script (random_state.c) has built is looked at from
// outside and from inside, saved and brought back twice, and looked at again. A difference is a fault of ours, unless a
// warning has told of it. Scripts are made from a seed, and a script that fails is made smaller.

import { execFileSync } from "node:child_process";
import {
  closeSync,
  chmodSync,
  mkdtempSync,
  openSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join, relative } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { checkpoint, type CheckpointOptions } from "../../src/engine/checkpoint.ts";
import { preDump } from "../../src/engine/pre-dump.ts";
import { restore, type RestoreOptions } from "../../src/engine/restore.ts";
import { RepriseError } from "../../src/errors.ts";
import { LogLevel, setLogSink } from "../../src/log.ts";
import { lookAtProc, treeOf, type Facts } from "./random-state-look.ts";
import {
  attachProgram,
  compileProgram,
  killProgram,
  makeDir,
  removeDir,
  startProgram,
  type RunningProgram,
} from "./programs.ts";

/** "pre-dump": the first set has a parent. */
export type Mode = "plain" | "pre-dump";

/** Operations of random_state.c and how often each is chosen. */
const WEIGHTS: Readonly<Record<string, number>> = {
  open: 4,
  seek: 2,
  write: 2,
  truncate: 1,
  deleted: 3,
  tmpfile: 1,
  linked: 1,
  renamed: 1,
  directory: 2,
  special: 2,
  pipe: 4,
  fifo: 3,
  dup: 4,
  close: 3,
  flags: 5,
  lock: 3,
  eventfd: 1,
  timerfd: 2,
  signalfd: 1,
  epoll: 2,
  watch: 4,
  inotify: 1,
  pidfd: 1,
  memfd: 2,
  pty: 2,
  mqueue: 1,
  socketpair: 4,
  unix_bind: 3,
  unix_connect: 3,
  accept: 2,
  send: 6,
  receive: 1,
  shutdown: 1,
  option: 4,
  inet_bind: 2,
  inet_connect: 3,
  netlink: 1,
  raw: 1,
  map: 5,
  map_file: 4,
  touch: 4,
  protect: 2,
  unmap: 2,
  remap: 2,
  advise: 3,
  mlock: 1,
  name_area: 1,
  seal: 1,
  break: 1,
  shm: 1,
  overlay_map: 2,
  fork: 6,
  thread: 3,
  exit: 1,
  exit_thread: 1,
  reap: 1,
  session: 2,
  mask: 2,
  action: 2,
  pend: 2,
  altstack: 1,
  itimer: 1,
  timer: 2,
  schedule: 2,
  limit: 1,
  place: 2,
  setting: 3,
  seccomp: 1,
  credentials: 2,
  wait: 8,
};

/** A script from a seed: each line names an actor, an operation and four numbers. */
export function makeScript(seed: number): string[] {
  const random = generator(seed);
  const names = Object.entries(WEIGHTS).flatMap(([name, weight]) =>
    Array<string>(weight).fill(name),
  );
  const length = 10 + (random() % 60);
  return Array.from({ length }, () => {
    const name = names[random() % names.length] as string;
    const numbers = Array.from({ length: 4 }, () => random() % 10_000);
    return [random() % 1000, name, ...numbers].join(" ");
  });
}

/** mulberry32 */
function generator(seed: number): () => number {
  let state = Math.imul(seed + 1, 0x9e3779b1);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % 0x7fff_ffff;
  };
}

export interface Outcome {
  /** Nothing when all is as it should be. */
  readonly differences: readonly string[];
  /** The error that refused the dump; nothing is wrong with that. */
  readonly refused?: string;
  readonly warnings: readonly string[];
  readonly notes: string;
}

const CHECKPOINT: Partial<CheckpointOptions> = {
  fileLocks: true,
  linkRemap: true,
  tcp: { established: true, skipInFlight: false },
  extUnixSk: true,
};
const RESTORE: Partial<RestoreOptions> = { tcp: { established: true }, extUnixSk: true };

/** Runs a script and compares. */
export async function runScript(script: readonly string[], mode: Mode = "plain"): Promise<Outcome> {
  const dir = makeDir("random");
  chmodSync(dir, 0o755);
  writeFileSync(join(dir, "script"), `${script.join("\n")}\n`);
  const warnings: string[] = [];
  setLogSink((_level, text) => void warnings.push(text), LogLevel.WARN);
  let program: RunningProgram | undefined;
  try {
    program = await startProgram("random_state", ["script"], { dir });
    try {
      await settled(program);
    } catch (error) {
      return {
        differences: [],
        refused: `script: ${String(error)}`,
        warnings,
        notes: notesOf(dir),
      };
    }
    const run = new Run(program, mode);
    const outcome = await run.go();
    const differences = outcome.differences.filter((line) => !isTold(line, warnings));
    return { ...outcome, differences, warnings, notes: notesOf(dir) };
  } finally {
    setLogSink(undefined);
    if (program !== undefined) await killProgram(program);
    removeDir(dir);
  }
}

/** What a warning says that it is lost (docs/losses.md). */
function isTold(difference: string, warnings: readonly string[]): boolean {
  const told = (text: string): boolean => warnings.some((line) => line.includes(text));
  if (/ready:|receives:/.test(difference) && told("an error that it has not read yet is lost"))
    return true;
  if (/ready:|receives:/.test(difference) && told("that its connection was reset")) return true;
  // An edge-triggered watch that has told of its file may tell once more.
  return /^drained: \+ .* event: /.test(difference);
}

class Run {
  private program: RunningProgram;
  readonly #mode: Mode;

  constructor(program: RunningProgram, mode: Mode) {
    this.program = program;
    this.#mode = mode;
  }

  async go(): Promise<Pick<Outcome, "differences" | "refused">> {
    const differences: string[] = [];
    const { dir } = this.program;
    const outside = await this.look();
    const images = [0, 1, 2].map((index) => join(mkdtempSync(join(dir, "images-")), String(index)));
    const pid = this.program.pid;
    const [before = "", first = "", second = ""] = images;
    try {
      const parent = this.#mode === "pre-dump" ? { parentDir: relative(first, before) } : {};
      if (this.#mode === "pre-dump") await preDump({ pid, imagesDir: before });
      await checkpoint({ pid, imagesDir: first, leave: "running", ...parent, ...CHECKPOINT });
    } catch (error) {
      if (error instanceof RepriseError && error.code === "UNSUPPORTED")
        return { differences, refused: error.message };
      throw error;
    }
    await settled(this.program);
    differences.push(...compare("left running", outside, await this.look()));
    const page = readFileSync(join(dir, "page"));
    const drained = drain(this.program.pid);
    const insideLater = await this.poke();
    await killProgram(this.program);
    putBack(join(dir, "page"), page);
    await this.restore(first);
    differences.push(...compare("restored", outside, await this.look()));
    await checkpoint({ pid: this.program.pid, imagesDir: second, ...CHECKPOINT });
    await this.restore(second);
    differences.push(...compare("restored twice", outside, await this.look()));
    const again = drain(this.program.pid);
    differences.push(...compareLists("drained", drained, again));
    differences.push(...compare("inside", insideLater, await this.poke()));
    return { differences };
  }

  private async restore(imagesDir: string): Promise<void> {
    const { pid } = await restore({ imagesDir, ...RESTORE });
    this.program = attachProgram("random_state", pid, this.program.dir);
    await settled(this.program);
  }

  private async look(): Promise<Facts> {
    const { pid, dir } = this.program;
    const facts = lookAtProc(pid);
    const seen = output("look", dir, processesOf(pid));
    for (const line of seen) {
      const colon = line.indexOf(": ");
      facts.set(line.slice(0, colon), line.slice(colon + 2));
    }
    return facts;
  }

  /** Lets all that are not stopped tell what they see themselves. */
  private async poke(): Promise<Facts> {
    const { pid, dir } = this.program;
    const before = readPage(dir);
    const tids = before.actors
      .filter(({ state, idle }) => state === 2 && idle === 0)
      .map(({ tid }) => tid);
    output("poke", dir, tids.length === 0 ? [0x7fff_0000] : tids);
    const stopped = new Set(
      treeOf(pid)
        .filter(({ state }) => state === "T")
        .map(({ tid }) => tid),
    );
    const end = Date.now() + 5000;
    for (;;) {
      const now = readPage(dir);
      const late = now.actors.filter(
        ({ state, told, tid }) => state === 2 && told !== now.generation && !stopped.has(tid),
      );
      if (late.length === 0 || Date.now() > end) break;
      await sleep(2);
    }
    return digests(dir);
  }
}

/** Writes a file in its place, as it is mapped. */
function putBack(path: string, bytes: Buffer): void {
  const fd = openSync(path, "r+");
  writeSync(fd, bytes, 0, bytes.length, 0);
  closeSync(fd);
}

function processesOf(root: number): number[] {
  return treeOf(root)
    .filter(({ tid, pid, state }) => tid === pid && state !== "Z")
    .map(({ pid }) => pid)
    .sort((one, other) => one - other);
}

function output(verb: string, dir: string, pids: readonly number[]): string[] {
  const text = execFileSync(compileProgram("random_state"), [verb, ...pids.map(String)], {
    cwd: dir,
    encoding: "latin1",
    maxBuffer: 1 << 26,
    timeout: 20_000,
  });
  const lines = text.split("\n");
  if (verb !== "poke" && lines.at(-2) !== "end") throw new Error(`${verb} did not come to its end`);
  return lines.filter((line) => line !== "" && line !== "end");
}

function drain(root: number): string[] {
  return output("drain", "/", processesOf(root));
}

/** Waits until the script is done and everybody waits. */
async function settled(program: RunningProgram, timeoutMs = 20_000): Promise<void> {
  const end = Date.now() + timeoutMs;
  for (let before = ""; ;) {
    const now = JSON.stringify(treeOf(program.pid).map(({ tid, state }) => [tid, state]));
    const { actors } = readPage(program.dir);
    const isQuiet =
      actors.length > 0 &&
      actors.every(({ state }) => state > 1) &&
      !/"[RD]"/.test(now) &&
      now !== "[]";
    if (isQuiet && now === before) return;
    before = isQuiet ? now : "";
    if (Date.now() > end)
      throw new Error(`it does not come to rest: ${now}\n${notesOf(program.dir)}`);
    await sleep(3);
  }
}

const ACTOR_SIZE = 24632;

interface Actor {
  readonly state: number;
  readonly pid: number;
  readonly tid: number;
  readonly told: number;
  readonly idle: number;
  readonly digest: string;
}

interface Page {
  readonly generation: number;
  readonly actors: readonly Actor[];
  readonly notes: string;
}

/** The page of random_state.h. */
function readPage(dir: string): Page {
  let bytes: Buffer;
  try {
    bytes = readFileSync(join(dir, "page"));
  } catch {
    return { generation: 0, actors: [], notes: "" };
  }
  if (bytes.length < 16 + 24 * ACTOR_SIZE) return { generation: 0, actors: [], notes: "" };
  const count = bytes.readInt32LE(8);
  const actors = Array.from({ length: count }, (_, index): Actor => {
    const at = 16 + index * ACTOR_SIZE;
    const length = bytes.readInt32LE(at + 48);
    return {
      state: bytes.readInt32LE(at),
      pid: bytes.readInt32LE(at + 4),
      tid: bytes.readInt32LE(at + 8),
      told: bytes.readInt32LE(at + 12),
      idle: bytes.readInt32LE(at + 16),
      digest: bytes.toString("latin1", at + 52, at + 52 + length),
    };
  });
  const notesAt = 16 + 24 * ACTOR_SIZE;
  const noted = bytes.readInt32LE(notesAt);
  const notes = bytes.toString("latin1", notesAt + 4, notesAt + 4 + noted);
  return { generation: bytes.readInt32LE(12), actors, notes };
}

function notesOf(dir: string): string {
  return readPage(dir).notes;
}

function digests(dir: string): Facts {
  const facts: Facts = new Map();
  for (const [index, { digest, told }] of readPage(dir).actors.entries()) {
    facts.set(`actor ${index} told`, String(told > 0));
    for (const line of digest.split("\n").filter(Boolean)) {
      const colon = line.indexOf(": ");
      facts.set(`actor ${index} ${line.slice(0, colon)}`, line.slice(colon + 2));
    }
  }
  return facts;
}

function compare(when: string, before: Facts, after: Facts): string[] {
  const names = new Set([...before.keys(), ...after.keys()]);
  return [...names].flatMap((name) => {
    const [was, is] = [before.get(name), after.get(name)];
    if (was === is) return [];
    // The size of TCP segments: the largest that can be asked for is a little smaller than over the loopback.
    if (
      name.endsWith("option 6 2") &&
      was === "\\00\\80\\00\\00" &&
      / ?\\[67]f|\\7f/.test(is ?? "")
    )
      return [];
    if (name.includes("~") && Math.abs(Number(was) - Number(is)) < 30) return [];
    return [`${when}: ${name}: ${was ?? "nothing"} -> ${is ?? "nothing"}`];
  });
}

function compareLists(when: string, before: readonly string[], after: readonly string[]): string[] {
  const [missing, more] = [subtract(before, after), subtract(after, before)];
  return [
    ...missing.map((line) => `${when}: - ${line}`),
    ...more.map((line) => `${when}: + ${line}`),
  ];
}

function subtract(from: readonly string[], what: readonly string[]): string[] {
  const counts = new Map<string, number>();
  for (const line of what) counts.set(line, (counts.get(line) ?? 0) + 1);
  return from.filter((line) => {
    const count = counts.get(line) ?? 0;
    counts.set(line, count - 1);
    return count <= 0;
  });
}

/** The smallest script found that still fails in the same way. */
export async function shrink(
  script: readonly string[],
  fails: (script: readonly string[]) => Promise<boolean>,
): Promise<string[]> {
  let best = [...script];
  for (
    let size = Math.ceil(best.length / 2);
    size >= 1;
    size = size === 1 ? 0 : Math.ceil(size / 2)
  ) {
    for (let at = 0; at < best.length;) {
      const candidate = [...best.slice(0, at), ...best.slice(at + size)];
      if (await fails(candidate)) best = candidate;
      else at += size;
    }
  }
  return best;
}
