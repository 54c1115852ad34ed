// Breakpoints that the kernel has set into a program's text for others: uprobes (perf, bpftrace, agents with bpf programs), see
// kernel/events/uprobes.c. A page with one is a private page of the task, and looks like any that the task has changed. In an image it
// would outlive the probe, and then kill the task. So text is saved only where it differs from what a new mapping of its file has, which
// gets the breakpoints of probes that are still there; and in a task with an area of the kernel's for probed instructions ("[uprobes]") also not
// where it differs by breakpoints only.

import { closeSync, constants, fstatSync, openSync, readSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type { PageRun } from "../../images/pagemap.ts";
import type { VmaEntry } from "../../images/schema/messages.generated.ts";
import { mapFilePath } from "../../proc/links.ts";
import { readSmaps, type SmapsVma } from "../../proc/smaps.ts";
import {
  MAP_FIXED,
  MAP_PRIVATE,
  PAGE_SIZE,
  PROT_EXEC,
  PROT_READ,
  PROT_WRITE,
} from "../../sys/abi/mman.ts";
import { memoryAt, trySyscall } from "../../sys/ffi.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { FrozenTask } from "../task/task.ts";
import { isUprobesArea, VMA_FILE_PRIVATE, type DumpedVma } from "./vma.ts";

/** Pages without those that a new mapping of the text has, too. */
export interface TextPages {
  readonly runs: readonly PageRun[];
  /** The areas of which pages were left out: a restore maps them so that probes find them. */
  readonly probed: ReadonlySet<VmaEntry>;
}

/** Leaves out pages of text that are the file's, or have breakpoints of the kernel's. */
export function leaveOutBreakpoints(
  pid: number,
  vmas: readonly DumpedVma[],
  runs: readonly PageRun[],
): TextPages {
  const changed = vmas.filter(({ entry }) => {
    if (!isText(entry)) return false;
    const run = runs[firstRunBehind(runs, entry.start)];
    return run !== undefined && overlaps(entry, run);
  });
  if (changed.length === 0) return { runs, probed: new Set() };
  const memory = openSync(`/proc/${pid}/mem`, "r");
  const probed = new Set<VmaEntry>();
  const kept: PageRun[] = [];
  try {
    // Both lists are in the order of addresses, and may be long: each is walked once.
    let next = 0;
    for (const run of runs) {
      while (next < changed.length && endOf(changed[next]) <= run.vaddr) next++;
      let left: PageRun[] = [run];
      for (let at = next; at < changed.length; at++) {
        const vma = changed[at] as DumpedVma;
        if (!overlaps(vma.entry, run)) break;
        using text = new Text(pid, vma.area);
        const before = countPages(left);
        left = left.flatMap(pagesOf).filter((page) => !text.has(memory, page.vaddr, vma));
        if (countPages(left) < before) probed.add(vma.entry);
      }
      kept.push(...left);
    }
    return { runs: joined(kept), probed };
  } finally {
    closeSync(memory);
  }
}

function endOf(vma: DumpedVma | undefined): number {
  return vma?.entry.end ?? 0;
}

/** Code of a file that the task does not write to. */
export function isText({ status, prot }: VmaEntry): boolean {
  return (status & VMA_FILE_PRIVATE) !== 0 && (prot & (PROT_EXEC | PROT_WRITE)) === PROT_EXEC;
}

/** Index of the first run that ends behind an address; runs are in order. */
function firstRunBehind(runs: readonly PageRun[], address: number): number {
  let from = 0;
  let to = runs.length;
  while (from < to) {
    const middle = (from + to) >> 1;
    const { vaddr, pages } = runs[middle] as PageRun;
    if (vaddr + pages * PAGE_SIZE > address) to = middle;
    else from = middle + 1;
  }
  return from;
}

function overlaps({ start, end }: VmaEntry, { vaddr, pages }: PageRun): boolean {
  return vaddr < end && vaddr + pages * PAGE_SIZE > start;
}

function countPages(runs: readonly PageRun[]): number {
  return runs.reduce((sum, { pages }) => sum + pages, 0);
}

function pagesOf({ vaddr, pages, flags }: PageRun): PageRun[] {
  return Array.from({ length: pages }, (_, index) => ({
    vaddr: vaddr + index * PAGE_SIZE,
    pages: 1,
    flags,
  }));
}

function joined(runs: readonly PageRun[]): PageRun[] {
  const result: PageRun[] = [];
  for (const run of runs) {
    const last = result.at(-1);
    if (last?.flags === run.flags && last.vaddr + last.pages * PAGE_SIZE === run.vaddr)
      result[result.length - 1] = { ...last, pages: last.pages + run.pages };
    else result.push(run);
  }
  return result;
}

/** The file of an area of text: as it is, and as the engine maps it. */
class Text implements Disposable {
  readonly #area: SmapsVma;
  readonly #fd: number;
  readonly #size: number;
  /** Address of the engine's mapping; an error number where none can be made. */
  readonly #mapped: number;

  constructor(pid: number, area: SmapsVma) {
    this.#area = area;
    this.#fd = openSync(mapFilePath(pid, area), constants.O_RDONLY);
    this.#size = fstatSync(this.#fd).size;
    const prot = PROT_READ | PROT_EXEC;
    const length = area.end - area.start;
    this.#mapped = trySyscall("mmap", 0, length, prot, MAP_PRIVATE, this.#fd, area.offset);
  }

  /** Whether a restore gets this page without an image. */
  has(memory: number, address: number, { uprobes }: DumpedVma): boolean {
    const at = address - this.#area.start;
    const offset = this.#area.offset + at;
    // What lies behind the end of the file cannot be read.
    if (address < this.#area.start || offset + PAGE_SIZE > this.#size) return false;
    const page = Buffer.alloc(PAGE_SIZE);
    if (readSync(memory, page, 0, PAGE_SIZE, address) !== PAGE_SIZE) return false;
    if (this.#mapped > 0 && page.equals(memoryAt(this.#mapped + at, PAGE_SIZE))) return true;
    const original = Buffer.alloc(PAGE_SIZE);
    if (readSync(this.#fd, original, 0, PAGE_SIZE, offset) !== PAGE_SIZE) return false;
    return uprobes === true && differsByBreakpoints(page, original);
  }

  [Symbol.dispose](): void {
    if (this.#mapped > 0) trySyscall("munmap", this.#mapped, this.#area.end - this.#area.start);
    closeSync(this.#fd);
  }
}

const INT3 = 0xcc;
/** A probe on this nop of five bytes may become a call to the kernel's trampoline. */
const NOP5 = Buffer.of(0x0f, 0x1f, 0x44, 0x00, 0x00);
const CALL = 0xe8;

/** Whether two pages of text are equal but for what the kernel writes for probes. */
export function differsByBreakpoints(page: Buffer, original: Buffer): boolean {
  for (let at = 0; at < page.length; at++) {
    if (page[at] === original[at] || page[at] === INT3) continue;
    if (page[at] !== CALL || !original.subarray(at, at + NOP5.length).equals(NOP5)) return false;
    at += NOP5.length - 1;
  }
  return true;
}

/**
 * A thread that is in a probed function which a uretprobe watches returns into the kernel's area; the restored one would have none.
 *
 * @throws RepriseError UNSUPPORTED
 */
export function refusePendingReturns(task: FrozenTask): void {
  const areas = readSmaps(task.pid);
  const kernels = areas.filter(isUprobesArea);
  for (const { tid, stopped } of task.threads) {
    const sp = stopped.regs.getNumber("rsp");
    const stack = areas.find(({ start, end }) => sp >= start && sp < end);
    const words = stack === undefined ? [] : stackWords(task.pid, sp, stack.end);
    const places = [stopped.regs.getNumber("rip"), ...words];
    if (!places.some((word) => kernels.some(({ start, end }) => word >= start && word < end)))
      continue;
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump pid ${task.pid} (${task.stat.comm}): thread ${tid} is in a function whose return is watched by a uretprobe`,
      { pid: task.pid, hint: "Remove the probes (perf, bpftrace) on this program, or try again." },
    );
  }
}

/** So much of a stack is looked at: frames further up are older than any probe is likely to be. */
const STACK_BYTES = 16 << 20;

function stackWords(pid: number, from: number, end: number): number[] {
  const start = from - (from % 8);
  const bytes = Buffer.alloc(Math.min(end - start, STACK_BYTES));
  const memory = openSync(`/proc/${pid}/mem`, "r");
  try {
    const got = readSync(memory, bytes, 0, bytes.length, start);
    return Array.from({ length: Math.floor(got / 8) }, (_, index) =>
      Number(bytes.readBigUInt64LE(index * 8)),
    );
  } finally {
    closeSync(memory);
  }
}

/**
 * Adds the call that maps text of a probed program once more. It was mapped writable first, for pages that an image may have, and the
 * kernel sets no breakpoints there.
 */
export function mapTextAgain(program: Program, vma: VmaEntry, file: Argument): void {
  const { start, end, prot, pgoff } = vma;
  const args = [start, end - start, prot, MAP_PRIVATE | MAP_FIXED, file, pgoff];
  program.call("mmap", args, { label: `map the text at ${start.toString(16)} for probes` });
}

/**
 * Adds the calls by which the kernel notes that an address space has probes. They are noted where text is mapped, and only then a
 * breakpoint that comes from an image is one of a probe's, and no trap.
 */
export function announceProbes(program: Program, vma: VmaEntry, file: Argument): void {
  const { start, end, prot, pgoff } = vma;
  const label = `look for probes in the text at ${start.toString(16)}`;
  const at = program.call("mmap", [0, end - start, prot, MAP_PRIVATE, file, pgoff], { label });
  program.call("munmap", [at, end - start], { label });
}
