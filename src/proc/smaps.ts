// /proc/PID/smaps: the memory areas with what the kernel's VMA flags say about each; see
// proc_pid_smaps(5) and show_smap_vma_flags in fs/proc/task_mmu.c. A block is a line as in maps, then
// lines `Name: value`. A dump reads it for every task, so it is parsed in one pass without patterns.
import { parseMapsHeader, type MapsVma } from "./maps.ts";
import { readProcText, undefinedIfGone } from "./procfs.ts";

/** The VMA flags by the two letters of the line VmFlags, with their names in the kernel. */
const VM_FLAG_NAMES = {
  rd: "VM_READ",
  wr: "VM_WRITE",
  ex: "VM_EXEC",
  sh: "VM_SHARED",
  mr: "VM_MAYREAD",
  mw: "VM_MAYWRITE",
  me: "VM_MAYEXEC",
  ms: "VM_MAYSHARE",
  gd: "VM_GROWSDOWN",
  pf: "VM_PFNMAP",
  dw: "VM_DENYWRITE",
  lo: "VM_LOCKED",
  io: "VM_IO",
  sr: "VM_SEQ_READ",
  rr: "VM_RAND_READ",
  dc: "VM_DONTCOPY",
  de: "VM_DONTEXPAND",
  lf: "VM_LOCKONFAULT",
  ac: "VM_ACCOUNT",
  nr: "VM_NORESERVE",
  ht: "VM_HUGETLB",
  sf: "VM_SYNC",
  ar: "VM_ARCH_1",
  wf: "VM_WIPEONFORK",
  dd: "VM_DONTDUMP",
  sd: "VM_SOFTDIRTY",
  mm: "VM_MIXEDMAP",
  hg: "VM_HUGEPAGE",
  nh: "VM_NOHUGEPAGE",
  mg: "VM_MERGEABLE",
  um: "VM_UFFD_MISSING",
  uw: "VM_UFFD_WP",
  ui: "VM_UFFD_MINOR",
  bt: "VM_ARM64_BTI",
  mt: "VM_MTE",
  ss: "VM_SHADOW_STACK",
  gu: "VM_MAYBE_GUARD",
  dp: "VM_DROPPABLE",
  sl: "VM_SEALED",
} as const;

export type VmFlag = keyof typeof VM_FLAG_NAMES;

/** One memory area with its flags. */
export interface SmapsVma extends MapsVma {
  /**
   * The two-letter flags, in the kernel's order; ask with `includes`. Letters of a newer kernel are kept.
   * Areas with equal flags share one array.
   */
  readonly vmFlags: readonly VmFlag[];
  /** Memory locked by mlock that counts for this area, in kB (of 1024 bytes). */
  readonly locked: number;
  /** The memory protection key, see pkeys(7); 0 is what all memory has. */
  readonly protectionKey: number;
  /**
   * Of anonymous memory: what is resident beyond its share of it (Rss less Pss), in kB. Processes that have pages in common since
   * a fork have this much less together than if each had its own.
   */
  readonly beyondShare: number;
}

/**
 * Reads the memory areas of a process with their flags; empty for kernel threads and zombies.
 * Throws NO_SUCH_PROCESS, NOT_PERMITTED or SYSCALL.
 */
export function readSmaps(pid: number): readonly SmapsVma[] {
  return parseSmaps(readProcText(pid, "smaps"));
}

/** Areas that were read before, and the text of each. */
export interface SmapsSeen {
  readonly vmas: readonly SmapsVma[];
  readonly blocks: readonly string[];
}

/**
 * Reads the memory areas of a process once more: of areas of which the same is told as before, the objects are the same. Throws as
 * readSmaps does.
 */
export function readSmapsAgain(pid: number, before: SmapsSeen = NOTHING_SEEN): SmapsSeen {
  return parseSmapsAgain(readProcText(pid, "smaps"), before);
}

const NOTHING_SEEN: SmapsSeen = { vmas: [], blocks: [] };

/** Like readSmaps; undefined when the process is gone. */
export function readSmapsIfAlive(pid: number): readonly SmapsVma[] | undefined {
  return undefinedIfGone(() => readSmaps(pid));
}

/** Parses the text of /proc/PID/smaps. */
export function parseSmaps(text: string): readonly SmapsVma[] {
  return parseSmapsAgain(text, NOTHING_SEEN).vmas;
}

/** The same for a text of which parts have been parsed before. */
export function parseSmapsAgain(text: string, before: SmapsSeen): SmapsSeen {
  const vmas: SmapsVma[] = [];
  const blocks: string[] = [];
  const flagSets = new Map<string, readonly VmFlag[]>();
  let at = 0;
  let next = 0;
  const isAsBefore = (): boolean => {
    const expected = before.blocks[next];
    if (expected === undefined || !text.startsWith(expected, at)) return false;
    vmas.push(before.vmas[next] as SmapsVma);
    blocks.push(expected);
    at += expected.length;
    next += 1;
    return true;
  };
  while (at < text.length) {
    if (isAsBefore()) continue;
    const headerEnd = lineEnd(text, at);
    const header = parseMapsHeader(text, { from: at, to: headerEnd });
    // Some may have gone.
    while ((before.vmas[next]?.start ?? Infinity) < header.start) next += 1;
    if (isAsBefore()) continue;
    // The line VmFlags is the last of a block in every kernel, so the twenty before it need not be split.
    const flags = text.indexOf("\nVmFlags:", headerEnd);
    const end = flags < 0 ? text.length : lineEnd(text, flags + 1);
    // What a block may lack is searched for in the block alone, never in the text, which has tens of megabytes where there are tens of
    // thousands of areas. Once for the text, before the loop, is no way out: V8 may move a search into the loop that uses what it found.
    const block = text.slice(headerEnd, end);
    vmas.push({
      start: header.start,
      end: header.end,
      read: header.read,
      write: header.write,
      exec: header.exec,
      shared: header.shared,
      offset: header.offset,
      devMajor: header.devMajor,
      devMinor: header.devMinor,
      inode: header.inode,
      path: header.path,
      vmFlags: flagSet(flags < 0 ? "" : text.slice(flags + 9, end), flagSets),
      locked: numberOf(block, "\nLocked:") ?? 0,
      // Only on processors that have such keys.
      protectionKey: numberOf(block, "\nProtectionKey:") ?? 0,
      beyondShare: isOwnMemory(header) ? beyondShare(block) : 0,
    });
    blocks.push(text.slice(at, end + 1));
    at = end + 1;
    if (before.vmas[next]?.start === header.start) next += 1;
  }
  return { vmas, blocks };
}

/** The number behind a name at the start of a line; undefined where a block has no such line. */
function numberOf(block: string, name: string): number | undefined {
  const at = block.indexOf(name);
  return at < 0
    ? undefined
    : Number.parseInt(block.slice(at + name.length, at + name.length + 24), 10);
}

/** Anonymous, and not the kernel's own pages, which all processes have: [vdso], [vvar], [vvar_vclock], [vsyscall]. */
function isOwnMemory({ inode, path }: { readonly inode: bigint; readonly path: string }): boolean {
  return inode === 0n && !path.startsWith("[v");
}

function beyondShare(block: string): number {
  // Neither is there without CONFIG_PROC_PAGE_MONITOR.
  return (numberOf(block, "\nRss:") ?? 0) - (numberOf(block, "\nPss:") ?? 0);
}

function lineEnd(text: string, from: number): number {
  const end = text.indexOf("\n", from);
  return end < 0 ? text.length : end;
}

function flagSet(line: string, known: Map<string, readonly VmFlag[]>): readonly VmFlag[] {
  let flags = known.get(line);
  if (flags === undefined) {
    flags = Object.freeze(line.split(" ").filter((name) => name !== "") as VmFlag[]);
    known.set(line, flags);
  }
  return flags;
}
