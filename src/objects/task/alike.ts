// Threads that are alike. Hundreds of threads of one process have nearly everything in common: credentials (one struct cred for all, as
// long as none changes its own), namespaces, descriptors, directories, cgroups, settings. To ask each for all of it takes most of the time
// that such a process stands still for. Where the kernel lets us read its memory (see sys/kernel-memory.ts), the task_struct of each thread
// tells which of them have the same: one of these is asked for all. What each has for itself, its alternate stack and the address that is
// cleared at its end, is read there, too.
//
// What is read is held against what those say that are asked; where it differs, all are asked.

import { closeSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type { ThreadSasEntry } from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { SS_AUTODISARM, SS_DISABLE, SS_ONSTACK } from "../../sys/abi/signal.ts";
import { PIDFD_THREAD } from "../../sys/abi/event-files.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { KernelMemory } from "../../sys/kernel-memory.ts";
import { KernelObjects } from "../../sys/kernel-objects.ts";
import type { KernelTypes } from "../../sys/kernel-types.ts";
import { processNumber, type FrozenTask, type FrozenThread } from "./task.ts";

/** From so many threads on it pays. */
export const MANY_ALIKE = 32;

/** Threads with the same of these pointers are in the same namespaces and cgroups, and share descriptors and directories. */
const PLACES = ["nsproxy", "files", "fs", "cgroups"] as const;
/** With the same of these, too, threads give the same answers to what they are asked. */
const ANSWERS = [
  "cred",
  "real_cred",
  "mempolicy",
  "flags",
  "atomic_flags",
  "thread_info.flags",
  "personality",
  "pdeath_signal",
  "timer_slack_ns",
] as const;
const OWN = ["sas_ss_sp", "sas_ss_size", "sas_ss_flags", "clear_child_tid"] as const;
const PLACE_IN_LIST = ["pid", "tgid", "thread_node", "signal"] as const;

/** Fields of four bytes. */
const HALVES: ReadonlySet<string> = new Set([
  "flags",
  "personality",
  "pdeath_signal",
  "sas_ss_flags",
  "pid",
  "tgid",
]);

type TaskField =
  | (typeof PLACES)[number]
  | (typeof ANSWERS)[number]
  | (typeof OWN)[number]
  | (typeof PLACE_IN_LIST)[number];

/** What a thread alone has. */
interface Own {
  readonly stack: { readonly pointer: bigint; readonly size: bigint; readonly flags: number };
  readonly clearTidAddress: bigint;
}

/** The threads of one process. */
export class AlikeThreads {
  /** Those that share with the first thread what a process has but once, but for itself. */
  readonly placed: ReadonlySet<number>;
  readonly #speakers: ReadonlyMap<number, number>;
  readonly #own: ReadonlyMap<number, Own>;

  constructor(
    placed: ReadonlySet<number>,
    speakers: ReadonlyMap<number, number>,
    own: ReadonlyMap<number, Own>,
  ) {
    this.placed = placed;
    this.#speakers = speakers;
    this.#own = own;
  }

  /** The one that is asked for a thread: maybe itself. */
  speakerOf(tid: number): number {
    return this.#speakers.get(tid) ?? tid;
  }

  clearTidAddress(tid: number): bigint {
    return this.#of(tid).clearTidAddress;
  }

  /** As sigaltstack(2) would tell the thread (kernel/signal.c, do_sigaltstack). */
  alternateStack({ tid, stopped }: FrozenThread): ThreadSasEntry {
    const { pointer, size, flags } = this.#of(tid).stack;
    const distance = stopped.regs.get("rsp") - pointer;
    const isAutomatic = (flags & SS_AUTODISARM) !== 0;
    const isOn = !isAutomatic && distance > 0n && distance <= size;
    const state = size === 0n ? SS_DISABLE : isOn ? SS_ONSTACK : 0;
    return { ss_sp: pointer, ss_size: size, ss_flags: (state | (flags & SS_AUTODISARM)) >>> 0 };
  }

  #of(tid: number): Own {
    return this.#own.get(tid) as Own;
  }
}

/** Looks at the threads of processes that have many. */
export class AlikeWatch implements Disposable {
  readonly #kernel: KernelObjects | undefined;
  readonly #known = new Map<number, AlikeThreads | undefined>();

  /** To be made before anybody stands still: the kernel's description of its types has megabytes. */
  static of(processes: readonly { readonly threads: number }[]): AlikeWatch {
    const isWorthIt = processes.some(({ threads }) => threads >= MANY_ALIKE);
    return new AlikeWatch(isWorthIt ? openKernel() : undefined);
  }

  static nobody(): AlikeWatch {
    return new AlikeWatch(undefined);
  }

  private constructor(kernel: KernelObjects | undefined) {
    this.#kernel = kernel;
  }

  /** What is known of the threads of a stopped process; undefined where nothing is. */
  threads(task: FrozenTask): AlikeThreads | undefined {
    if (this.#kernel === undefined || task.threads.length < MANY_ALIKE) return undefined;
    if (!this.#known.has(task.pid)) this.#known.set(task.pid, look(task, this.#kernel));
    return this.#known.get(task.pid);
  }

  /** Nothing is known of a process: what was read is not what its threads say. */
  forget({ pid }: FrozenTask): void {
    this.#known.set(pid, undefined);
  }

  [Symbol.dispose](): void {
    this.#kernel?.memory[Symbol.dispose]();
  }
}

function openKernel(): KernelObjects | undefined {
  let memory: KernelMemory | undefined;
  try {
    memory = new KernelMemory();
    const kernel = new KernelObjects(memory);
    // Looking for a name goes through megabytes.
    offsets(kernel.types);
    taskStruct(process.pid, kernel);
    return kernel;
  } catch (error) {
    memory?.[Symbol.dispose]();
    if (!(error instanceof RepriseError)) throw error;
    log.debug(`each thread is asked: ${error.message}`);
    return undefined;
  }
}

type Offsets = Readonly<Record<TaskField, number>>;

function offsets(types: KernelTypes): Offsets {
  const at = (name: TaskField): readonly [TaskField, number] => [
    name,
    types.field(`task_struct.${name}`).offset,
  ];
  const names = [...PLACES, ...ANSWERS, ...OWN, ...PLACE_IN_LIST];
  return Object.fromEntries(names.map(at)) as Offsets;
}

/** Looks at all threads that the kernel has in its list; undefined unless they are those that were stopped. */
function look(task: FrozenTask, kernel: KernelObjects): AlikeThreads | undefined {
  try {
    const found = readThreads(task, kernel);
    if (found.own.size !== task.threads.length) return undefined;
    return new AlikeThreads(found.placed, found.speakers, found.own);
  } catch (error) {
    if (!(error instanceof RepriseError)) throw error;
    log.debug(`each thread of pid ${task.pid} is asked: ${error.message}`);
    return undefined;
  }
}

interface Found {
  readonly placed: Set<number>;
  readonly speakers: Map<number, number>;
  readonly own: Map<number, Own>;
}

function readThreads(task: FrozenTask, { memory, types }: KernelObjects): Found {
  const wanted = new Set(task.threads.map(({ tid }) => tid));
  const process = processNumber(task);
  const at = offsets(types);
  const first = Math.min(...Object.values(at)) & ~7;
  const length = Math.max(...Object.values(at)) + 16 - first;
  const places = PLACES.flatMap((name) => wordsOf(name, { at, first }));
  const words = [...places, ...ANSWERS.flatMap((name) => wordsOf(name, { at, first }))];
  const leader = taskStruct(task.pid, { memory, types });
  const fieldsAt = (address: bigint): Int32Array => memory.look(address + BigInt(first), length);
  const wordAt = (name: TaskField): number => (at[name] - first) / 4;
  const [pid, tgid] = [wordAt("pid"), wordAt("tgid")];
  const own = fieldsAt(leader);
  const leaders = takeWords(own, places);
  const head =
    longAt(own, wordAt("signal")) + BigInt(types.field("signal_struct.thread_head").offset);
  const found: Found = { placed: new Set(), speakers: new Map(), own: new Map() };
  const groups: Group[] = [];
  const node = BigInt(at.thread_node);
  let next = memory.word(head);
  // Threads that the kernel runs for the process are in the list, too.
  for (let seen = 0; next !== head && seen < wanted.size + MOST_OTHERS; seen += 1) {
    const thread = fieldsAt(next - node);
    next = longAt(thread, wordAt("thread_node"));
    const tid = thread[pid] as number;
    // The kernel's own numbers: where the engine has others for them, nobody is found.
    if (!wanted.has(tid) || thread[tgid] !== process) continue;
    const isPlaced = hasWords(thread, places, leaders);
    if (tid !== task.pid) {
      if (isPlaced) found.placed.add(tid);
      found.speakers.set(tid, speakerFor(tid, thread, { groups, words }));
    }
    found.own.set(tid, {
      stack: {
        pointer: longAt(thread, wordAt("sas_ss_sp")),
        size: longAt(thread, wordAt("sas_ss_size")),
        flags: (thread[wordAt("sas_ss_flags")] as number) >>> 0,
      },
      clearTidAddress: longAt(thread, wordAt("clear_child_tid")),
    });
  }
  return found;
}

/** Of workers of io_uring, say. */
const MOST_OTHERS = 4096;

/** Threads that have the same, and the one of them that is asked. */
interface Group {
  readonly words: Int32Array;
  readonly speaker: number;
}

function speakerFor(
  tid: number,
  thread: Int32Array,
  { groups, words }: { readonly groups: Group[]; readonly words: readonly number[] },
): number {
  for (let index = groups.length - 1; index >= 0; index -= 1) {
    const group = groups[index] as Group;
    if (hasWords(thread, words, group.words)) return group.speaker;
  }
  groups.push({ words: takeWords(thread, words), speaker: tid });
  return tid;
}

// Of four bytes each, without strings or big numbers: there are dozens for each of hundreds of threads.

function wordsOf(
  name: TaskField,
  { at, first }: { readonly at: Offsets; readonly first: number },
): number[] {
  const from = (at[name] - first) / 4;
  return HALVES.has(name) ? [from] : [from, from + 1];
}

function takeWords(thread: Int32Array, places: readonly number[]): Int32Array {
  return Int32Array.from(places, (place) => thread[place] as number);
}

function hasWords(thread: Int32Array, places: readonly number[], words: Int32Array): boolean {
  for (let index = 0; index < places.length; index += 1)
    if (thread[places[index] as number] !== words[index]) return false;
  return true;
}

/** Eight bytes. */
function longAt(thread: Int32Array, place: number): bigint {
  const low = BigInt((thread[place] as number) >>> 0);
  const high = (thread[place + 1] as number) >>> 0;
  return high === 0 ? low : (BigInt(high) << 32n) | low;
}

/** Where the kernel keeps a thread: the first in the list of those that have its number. */
export function taskStruct(
  tid: number,
  { memory, types }: Pick<KernelObjects, "memory" | "types">,
): bigint {
  const pidfd = trySyscall("pidfd_open", tid, PIDFD_THREAD);
  const fd = pidfd >= 0 ? pidfd : syscall("pidfd_open", tid, 0);
  try {
    const at = (path: string): bigint => BigInt(types.field(path).offset);
    const inode = memory.word(memory.file(fd, types) + at("file.f_inode"));
    const pid = memory.word(inode + at("inode.i_private"));
    return memory.word(pid + at("pid.tasks")) - at("task_struct.pid_links");
  } finally {
    closeSync(fd);
  }
}
