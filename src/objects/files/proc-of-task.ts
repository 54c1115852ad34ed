// Files below /proc/PID of tasks of the tree that are not there yet when files are opened, or not with all that they will have. They
// are opened when the tree stands (those of threads: when these do) by the first task that holds them, and given to the others.

import {
  RemapType,
  type FileEntry,
  type RegFileEntry,
} from "../../images/schema/messages.generated.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import { AT_FDCWD, F_GETFD, F_SETFD, O_PATH } from "../../sys/abi/fcntl.ts";
import type { Argument, Program, Ref } from "../../tracee/program.ts";
import { isHeldTwice, makeCarrier, sendCarried, takeCarried, waitCarried } from "./carrier.ts";
import type { FilesRestore } from "./file-kind.ts";

const PROC_OF_TASK = /^\/proc\/(\d+)(\/.*|$)/s;
const PROC_OF_THREAD = /^\/proc\/(\d+)\/task\/(\d+)(\/.*|$)/s;

/** Whether an entry's file is below /proc/PID and does not exist yet when files are opened. */
export function isOfLaterTask({ id, name }: RegFileEntry, { set }: FilesRestore): boolean {
  const [, number, rest = ""] = PROC_OF_TASK.exec(name) ?? [];
  if (number === undefined || isOfTheDead(id, set)) return false;
  const pid = Number(number);
  // The root task is there, but not its descriptors, threads and memory.
  if (pid === set.rootPid) return /^\/(?:fd|fdinfo|task|map_files)\//.test(rest);
  return set.tasks.has(pid);
}

/** Whether a file is below /proc/PID/task/TID of a thread that is not the first of its process. */
export function isOfThread({ reg }: FileEntry): boolean {
  const [, pid, tid] = PROC_OF_THREAD.exec(reg?.name ?? "") ?? [];
  return pid !== tid;
}

/** A number and a path by which a thread that has ended is a process: with its own number where its process lives. */
export function deadThread(
  name: string,
  set: LoadedSet,
): { readonly tid: number; readonly path: string } | undefined {
  const [, pid, tid, rest = ""] = PROC_OF_THREAD.exec(name) ?? [];
  if (pid === tid) return undefined;
  const number = set.tasks.has(Number(pid)) ? tid : pid;
  return { tid: Number(number), path: `/proc/${number}/task/${number}${rest}` };
}

function isOfTheDead(id: number, { remaps }: LoadedSet): boolean {
  return remaps.some((remap) => remap.orig_id === id && remap.remap_type === RemapType.PROCFS);
}

/** Numbers of the senders of those that several descriptors have, by the ids of the files. */
const senders = new WeakMap<FilesRestore, Map<number, number>>();

function sendersOf(restore: FilesRestore): Map<number, number> {
  let known = senders.get(restore);
  if (known === undefined) senders.set(restore, (known = new Map()));
  return known;
}

/** What is not there yet is opened by `settleProcFile`; this keeps its place until then. */
export function openStandIn(
  program: Program,
  { id, name }: RegFileEntry,
  restore: FilesRestore,
): Argument {
  const label = `keep a place for ${name} (file ${id})`;
  if (!isHeldTwice(id, restore))
    return program.call("openat", [AT_FDCWD, program.string("/proc/self"), O_PATH, 0], { label });
  const { fd, sender } = makeCarrier(program, `${name} (file ${id})`, restore);
  sendersOf(restore).set(id, sender);
  return fd;
}

/** Puts the file in the place of one descriptor: `open` adds the calls that open it, for the first. */
export function settleProcFile(
  program: Program,
  {
    entry: { id, name },
    fd,
    restore,
  }: { readonly entry: RegFileEntry; readonly fd: number; readonly restore: FilesRestore },
  open: () => Ref,
): void {
  const label = `put ${name} (file ${id}) in its place`;
  const atExec = program.call("fcntl", [fd, F_GETFD, 0], { label });
  const opened = isHeldTwice(id, restore)
    ? openOnce(program, { id, fd, restore, label }, open)
    : open();
  program.call("dup3", [opened, fd, 0], { label });
  program.call("fcntl", [fd, F_SETFD, atExec], { label });
  program.call("close", [opened], { label });
}

function openOnce(
  program: Program,
  {
    id,
    fd,
    restore,
    label,
  }: {
    readonly id: number;
    readonly fd: number;
    readonly restore: FilesRestore;
    readonly label: string;
  },
  open: () => Ref,
): Argument {
  const sender = sendersOf(restore).get(id);
  if (sender === undefined) {
    waitCarried(program, fd, label);
    return takeCarried(program, fd, label);
  }
  sendersOf(restore).delete(id);
  const opened = open();
  sendCarried(program, { sender, fd: opened }, label);
  return opened;
}
