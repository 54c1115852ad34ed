// Time namespaces, see time_namespaces(7): offsets of the monotonic and the boot-time clock. timens-ID.img holds what the clocks said
// at the dump, timens-0.img those of a tree that lived in the engine's namespace. A restored tree's clocks must never go back, so
// it gets a time namespace in which they go on from there; unless the clocks here are the same ones, which have gone on by
// themselves.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import type { ImageSetWriter } from "../../images/image-set.ts";
import type { TimensEntry, Timespec } from "../../images/schema/messages.generated.ts";
import { errnoOf } from "../../proc/procfs.ts";
import { readBootId } from "../../proc/self.ts";
import { O_CLOEXEC, O_RDONLY, AT_FDCWD } from "../../sys/abi/fcntl.ts";
import { CLONE_NEWTIME } from "../../sys/abi/sched.ts";
import { syscall } from "../../sys/ffi.ts";
import type { Program } from "../../tracee/program.ts";
import type { NamespaceRoom } from "./room.ts";

const CLOCK_MONOTONIC = 1;
const CLOCK_BOOTTIME = 7;
const NSEC_PER_SEC = 1_000_000_000n;

export const timeRoom: NamespaceRoom = {
  kind: "time",

  write({ id, pid }, { images }) {
    const own = readOffsets("self");
    const theirs = readOffsets(pid);
    images.write("timens", id, [
      {
        monotonic: toTimespec(readClock(CLOCK_MONOTONIC) - own.monotonic + theirs.monotonic),
        boottime: toTimespec(readClock(CLOCK_BOOTTIME) - own.boottime + theirs.boottime),
      },
    ]);
  },

  // Needed before the other tasks are made: see setOffsets.
  restore: () => undefined,
};

/** The clocks of a tree that shares the engine's time namespace. */
export function writeOwnClocks(images: ImageSetWriter): void {
  const clocks = identifyClocks();
  images.write("timens", 0, [
    {
      monotonic: toTimespec(readClock(CLOCK_MONOTONIC)),
      boottime: toTimespec(readClock(CLOCK_BOOTTIME)),
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

/** Between the halves, by the engine: the clocks go on from those of the images. */
export function setOffsets(pid: number, clocks: TimensEntry): void {
  const own = readOffsets("self");
  const monotonic = fromTimespec(clocks.monotonic) - (readClock(CLOCK_MONOTONIC) - own.monotonic);
  const boottime = fromTimespec(clocks.boottime) - (readClock(CLOCK_BOOTTIME) - own.boottime);
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
  const path = program.string("/proc/self/ns/time_for_children");
  const fd = program.call("openat", [AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0], {
    label: "open the time namespace",
  });
  program.call("setns", [fd, CLONE_NEWTIME], { label: "enter the time namespace" });
  program.call("close", [fd]);
}

interface Offsets {
  readonly monotonic: bigint;
  readonly boottime: bigint;
}

/** /proc/PID/timens_offsets, in nanoseconds; a kernel without time namespaces has no such file. */
function readOffsets(pid: number | "self"): Offsets {
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
