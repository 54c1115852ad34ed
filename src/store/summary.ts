// What is in a checkpoint, for people: the process tree, its open files and memory, read from the images.

import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { ImageFile, readEntries } from "../images/image-file.ts";
import { imageName, type EntryKind, type MessageOf } from "../images/names.ts";
import { PE_PRESENT, PAGE_SIZE, readPagemap } from "../images/pagemap.ts";
import type { FileEntry, Messages } from "../images/schema/messages.generated.ts";

export interface TaskSummary {
  /** Pids as in the images: those of the innermost pid namespace. */
  readonly pid: number;
  readonly ppid: number;
  readonly comm: string;
  readonly threads: number;
  /** Bytes of all mappings, and of the pages that are saved. */
  readonly mappedBytes: number;
  readonly savedBytes: number;
  readonly files: readonly FileSummary[];
}

export interface FileSummary {
  readonly fd: number;
  /** Kind of file, in the words of /proc where it has one. */
  readonly kind: string;
  /** Path, or what there is instead. */
  readonly name: string;
  /** Offset of the file, for regular files. */
  readonly position: number | undefined;
}

/**
 * Reads the tasks of a checkpoint, parents before children.
 *
 * @throws RepriseError BAD_IMAGE for a damaged image.
 */
export function summarize(imagesDir: string): TaskSummary[] {
  const files = new Map(entries(imagesDir, "files").map((file) => [file.id, file]));
  return entries(imagesDir, "pstree").map(({ pid, ppid, threads }) => {
    const [core] = entries(imagesDir, "core", pid);
    const [mm] = entries(imagesDir, "mm", pid);
    const table = core?.ids?.files_id ?? entries(imagesDir, "ids", pid)[0]?.files_id;
    return {
      pid,
      ppid,
      comm: core?.tc?.comm ?? "",
      threads: threads.length,
      mappedBytes: (mm?.vmas ?? []).reduce((sum, vma) => sum + vma.end - vma.start, 0),
      savedBytes: savedBytes(imagesDir, pid),
      files: fileSummaries(imagesDir, { table, files }),
    };
  });
}

/** Number of image files. */
export function imageCount(imagesDir: string): number {
  return readdirSync(imagesDir).filter((name) => name.endsWith(".img")).length;
}

function fileSummaries(
  imagesDir: string,
  options: { readonly table: number | undefined; readonly files: ReadonlyMap<number, FileEntry> },
): FileSummary[] {
  if (options.table === undefined) return [];
  return entries(imagesDir, "fdinfo", options.table).map(({ fd, id }) => {
    const file = options.files.get(id);
    return {
      fd,
      ...describe(file),
      position: file?.reg === undefined ? undefined : Number(file.reg.pos),
    };
  });
}

const KINDS: readonly (readonly [keyof FileEntry, string])[] = [
  ["reg", "file"],
  ["pipe", "pipe"],
  ["fifo", "fifo"],
  ["usk", "unix socket"],
  ["isk", "inet socket"],
  ["nlsk", "netlink socket"],
  ["psk", "packet socket"],
  ["efd", "eventfd"],
  ["epfd", "epoll"],
  ["sgfd", "signalfd"],
  ["tfd", "timerfd"],
  ["ify", "inotify"],
  ["ffy", "fanotify"],
  ["tty", "terminal"],
  ["memfd", "memfd"],
  ["pidfd", "pidfd"],
  ["nsf", "namespace"],
  ["tunf", "tun"],
  ["bpf", "bpf map"],
  ["ext", "external"],
];

function describe(file: FileEntry | undefined): { kind: string; name: string } {
  if (file === undefined) return { kind: "unknown", name: "" };
  const kind = KINDS.find(([key]) => file[key] !== undefined)?.[1] ?? `type ${file.type}`;
  if (file.reg !== undefined) {
    const name = file.reg.name;
    return { kind, name: name.startsWith("/") ? name : `/${name}` };
  }
  if (file.pipe !== undefined) return { kind, name: `pipe:[${file.pipe.pipe_id}]` };
  return { kind, name: `#${file.id}` };
}

function savedBytes(imagesDir: string, pid: number): number {
  const name = imageName("pagemap", pid);
  const path = join(imagesDir, name);
  if (!existsSync(path)) return 0;
  using file = new ImageFile(path, name);
  const { runs } = readPagemap(file, "pagemap");
  return runs
    .filter((run) => (run.flags & PE_PRESENT) !== 0)
    .reduce((sum, run) => sum + run.pages * PAGE_SIZE, 0);
}

/** Entries of an image, or none when the set has no such image. */
function entries<K extends EntryKind>(
  imagesDir: string,
  kind: K,
  id?: number,
): Messages[MessageOf<K>][] {
  const name = imageName(kind, id);
  const path = join(imagesDir, name);
  if (!existsSync(path)) return [];
  using file = new ImageFile(path, name);
  return readEntries(file, kind).map((entry) => entry.value);
}
