// Time namespaces, see time_namespaces(7): offsets of the monotonic and the boot-time clock. timens-ID.img holds what the clocks said
// at the dump, timens-0.img those of a tree that lived in the engine's namespace. A restored tree's clocks must never go back, so
// it gets a time namespace in which they go on from there; unless the clocks here are the same ones, which have gone on by
// themselves.

import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import type { ImageSetWriter } from "../../images/image-set.ts";
import type { TimensEntry, Timespec } from "../../images/schema/messages.generated.ts";
import { errnoOf } from "../../proc/procfs.ts";
import { readBootId } from "../../proc/self.ts";
import { O_CLOEXEC, O_RDONLY, AT_FDCWD } from "../../sys/abi/fcntl.ts";
import { CLONE_NEWTIME } from "../../sys/abi/sched.ts";
import { syscall } from "../../sys/ffi.ts";
import { Program, type Ref } from "../../tracee/program.ts";
import type { CollectedNamespace, CollectedNamespaces } from "./collect.ts";
import { visit } from "./relations.ts";
import type { NamespaceRoom, NamespacesRestore } from "./room.ts";
import { CLOCK_MONOTONIC, CLOCK_BOOTTIME } from "../../sys/abi/event-files.ts";

const NSEC_PER_SEC = 1_000_000_000n;

/** How far clocks are from those of the machine, in nanoseconds. */
export interface ClockOffsets {
  readonly monotonic: bigint;
  readonly boottime: bigint;
}

export const timeRoom: NamespaceRoom = {
  kind: "time",

  write(namespace, { images, namespaces }) {
    const own = readOffsets("self");
    const theirs = offsetsOf(namespace, namespaces);
    const { monotonic, boottime } = clocksAt(images);
    images.write("timens", namespace.id, [
      {
        monotonic: toTimespec(monotonic - own.monotonic + theirs.monotonic),
        boottime: toTimespec(boottime - own.boottime + theirs.boottime),
      },
    ]);
  },

  /**
   * Further ones; the root task's is needed before (see `setOffsets`), and those that a task has made for its children only that task can
   * make again (see `makeTimeForChildren`).
   */
  restore(namespaces, restore) {
    for (const namespace of namespaces) {
      if (namespace.role !== "nested" || namespace.maker !== undefined) continue;
      const { id } = namespace;
      const offsets = furtherOffsets(restore, id);
      restore.runInHelper(namespace, (helper) => {
        const making = new Program();
        makeTimeNamespace(making);
        helper.run(making);
        setOffsets(helper.pid, offsets);
        const keeping = new Program();
        const fd = openForChildren(keeping);
        const kept = restore.keep(keeping, fd, `keep time namespace ${id}`);
        restore.setDescriptor(namespace, helper.run(keeping).value(kept));
      });
    }
  },
};

/**
 * The offsets of a further time namespace: its clocks are as far apart from those of the root task as they were. Where that one's have gone
 * on meanwhile, so have these.
 */
export function furtherOffsets(
  { set, rootPid }: Pick<NamespacesRestore, "set" | "rootPid">,
  id: number,
): ClockOffsets {
  const [saved] = set.reader.read("timens", id);
  if (saved === undefined) throw set.reader.missing("timens", id);
  const { timens } = set;
  if (timens === undefined) return offsetsFrom(saved);
  const root = readOffsets(rootPid);
  const apart = (name: keyof ClockOffsets): bigint =>
    root[name] + fromTimespec(saved[name]) - fromTimespec(timens[name]);
  return { monotonic: apart("monotonic"), boottime: apart("boottime") };
}

/** Adds the call that opens the namespace in which the next children of a task will be. */
function openForChildren(program: Program): Ref {
  const path = program.string("/proc/thread-self/ns/time_for_children");
  return program.call("openat", [AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0], {
    label: "open the time namespace",
  });
}

/** The offsets of a namespace. They are shown of processes whose children are to live in it, and of one in it there may be none. */
function offsetsOf(namespace: CollectedNamespace, namespaces: CollectedNamespaces): ClockOffsets {
  const shown = namespaces.clocksOf(namespace);
  if (shown !== undefined) return readOffsets(shown);
  const fd = openSync(`/proc/${namespace.pid}/ns/time`, "r");
  try {
    return visit({ fd, flag: CLONE_NEWTIME, look: readOffsets });
  } finally {
    closeSync(fd);
  }
}

/** One moment for all namespaces of a set, so that their clocks stay as far apart as they are. */
function clocksAt(images: ImageSetWriter): ClockOffsets {
  let clocks = moments.get(images);
  if (clocks === undefined) {
    clocks = { monotonic: readClock(CLOCK_MONOTONIC), boottime: readClock(CLOCK_BOOTTIME) };
    moments.set(images, clocks);
  }
  return clocks;
}

const moments = new WeakMap<ImageSetWriter, ClockOffsets>();

/** The clocks of a tree that shares the engine's time namespace. */
export function writeOwnClocks(images: ImageSetWriter): void {
  const clocks = identifyClocks();
  const { monotonic, boottime } = clocksAt(images);
  images.write("timens", 0, [
    {
      monotonic: toTimespec(monotonic),
      boottime: toTimespec(boottime),
      ...(clocks === undefined ? {} : { clocks }),
    },
  ]);
}

/**
 * Which clocks these are: those of this boot, with the offsets of the engine's own namespace. Undefined on a kernel without time
 * namespaces, where nothing can be done about clocks.
 */
export function identifyClocks(): string | undefined {
  if (ownClocks !== undefined) return ownClocks;
  if (!existsSync("/proc/self/timens_offsets")) return undefined;
  const { monotonic, boottime } = readOffsets("self");
  ownClocks = `${readBootId()} ${monotonic} ${boottime}`;
  return ownClocks;
}

/** They stay the same as long as the engine runs: it enters no time namespace. */
let ownClocks: string | undefined;

/** First half, in the first task: it makes a time namespace for its children. Clocks are frozen when a task enters. */
export function makeTimeNamespace(program: Program): void {
  program.call("unshare", [CLONE_NEWTIME], {
    label: "make a time namespace",
    hint: "Time namespaces need Linux 5.6 with CONFIG_TIME_NS, and CAP_SYS_ADMIN.",
  });
}

/** ClockOffsets with which clocks go on from those of the images. */
export function offsetsFrom(clocks: TimensEntry): ClockOffsets {
  const own = readOffsets("self");
  return {
    monotonic: fromTimespec(clocks.monotonic) - (readClock(CLOCK_MONOTONIC) - own.monotonic),
    boottime: fromTimespec(clocks.boottime) - (readClock(CLOCK_BOOTTIME) - own.boottime),
  };
}

/** Between the halves, by the engine: sets the clocks of the namespace that a process has made. */
export function setOffsets(pid: number, { monotonic, boottime }: ClockOffsets): void {
  const line = (clock: number, offset: bigint): string => {
    const { tv_sec, tv_nsec } = toTimespec(offset);
    return `${clock} ${tv_sec} ${tv_nsec}\n`;
  };
  try {
    writeFileSync(
      `/proc/${pid}/timens_offsets`,
      line(CLOCK_MONOTONIC, monotonic) + line(CLOCK_BOOTTIME, boottime),
    );
  } catch (error) {
    throw new RepriseError(
      "SYSCALL",
      `cannot set the clocks of the tree: write timens_offsets: ${errnoOf(error) ?? "unknown error"}`,
      { syscall: "write", cause: error },
    );
  }
  log.debug(`clocks of the tree: monotonic ${monotonic} ns, boottime ${boottime} ns from here`);
}

/** Second half: the first task enters it itself. */
export function enterTimeNamespace(program: Program): void {
  const fd = openForChildren(program);
  program.call("setns", [fd, CLONE_NEWTIME], { label: "enter the time namespace" });
  program.call("close", [fd]);
}

/** /proc/PID/timens_offsets, in nanoseconds; a kernel without time namespaces has no such file. */
function readOffsets(pid: number | "self"): ClockOffsets {
  const text = readIfThere(`/proc/${pid}/timens_offsets`);
  const offset = (name: string): bigint => {
    const match = new RegExp(`^${name}\\s+(-?\\d+)\\s+(\\d+)`, "m").exec(text);
    return match === null ? 0n : BigInt(match[1] ?? 0) * NSEC_PER_SEC + BigInt(match[2] ?? 0);
  };
  return { monotonic: offset("monotonic"), boottime: offset("boottime") };
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return "";
    throw error;
  }
}

function readClock(clock: number): bigint {
  const time = Buffer.alloc(16);
  syscall("clock_gettime", clock, time);
  return time.readBigInt64LE(0) * NSEC_PER_SEC + time.readBigInt64LE(8);
}

/** Seconds may be negative, nanoseconds never. */
function toTimespec(ns: bigint): Timespec {
  const rest = ((ns % NSEC_PER_SEC) + NSEC_PER_SEC) % NSEC_PER_SEC;
  return { tv_sec: (ns - rest) / NSEC_PER_SEC, tv_nsec: rest };
}

function fromTimespec({ tv_sec, tv_nsec }: Timespec): bigint {
  return BigInt.asIntN(64, tv_sec) * NSEC_PER_SEC + tv_nsec;
}
