// inotify: watches on inodes and a queue of events, see inotify(7) and fs/notify/inotify. fdinfo names a watched inode by a
// file handle, and the program's own path is nowhere kept: a path is found again at dump (watched-path.ts) and watched at
// restore, under the same number. Queued events are lost, as with CRIU.

import { assert, RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import {
  FdTypes,
  type FhEntry,
  type FileEntry,
  type InotifyWdEntry,
} from "../../images/schema/messages.generated.ts";
import type { FileHandle } from "../../proc/file-handle.ts";
import type { InotifyMark } from "../../proc/notify-marks.ts";
import {
  IN_ALL_EVENTS,
  IN_DONT_FOLLOW,
  IN_EXCL_UNLINK,
  IN_ONESHOT,
  IN_UNMOUNT,
  INOTIFY_IOC_SETNEXTWD,
  MAX_HANDLE_SZ,
} from "../../sys/abi/event-files.ts";
import { F_SETFL, FIONREAD, O_CLOEXEC, O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import { syscall } from "../../sys/ffi.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { ghostWithInode } from "./path-for-opening.ts";
import { O_ASYNC, readOwner, restoreOwner } from "./owner.ts";
import type { FileKind, FilesDump, FilesRestore, OpenFile } from "./file-kind.ts";
import { pathArgument } from "./path.ts";
import { PathFinder, type WatchedPath } from "./watched-path.ts";

export const inotifyKind: FileKind = {
  name: "inotify",
  type: FdTypes.INOTIFY,
  recognise: ({ target }) => target === "anon_inode:inotify",
  write: writeInotify,
  open: openInotify,
  settle: dropOwnEvents,
};

/** Bits that a program can set in a watch and that fdinfo shows. */
const USER_MASK = IN_ALL_EVENTS | IN_EXCL_UNLINK | IN_ONESHOT;
/** Words of 8 bytes in the image's handle, whatever the handle's own size. */
const HANDLE_WORDS = MAX_HANDLE_SZ / 8;
/** Room for what the restore itself does to watched directories. */
const OWN_EVENTS_SIZE = 64 * 1024;

function writeInotify(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  warnOfEvents(file, dump);
  using finder = new PathFinder(file, dump.mounts);
  const wd = file.info.inotify
    .toSorted((a, b) => a.wd - b.wd)
    .map((mark) => watchEntry(mark, finder.findAnywhere(mark)));
  const ify = { id, flags: file.info.flags & ~O_CLOEXEC, fown: readOwner(file, dump), wd };
  return { type: FdTypes.INOTIFY, id, ify };
}

/**
 * The watches come when the other files are open, so that making those is no event. What is still to see of the restore
 * itself (a name of a deleted file going away again) is read away when the task is complete.
 */
function openInotify(program: Program, { id, ify }: FileEntry, restore: FilesRestore): Argument {
  assert(ify !== undefined, `file ${id} is no inotify`);
  const fd = program.call("inotify_init1", [ify.flags & O_NONBLOCK], {
    label: `make inotify ${id}`,
  });
  restoreOwner(program, ify.fown, fd);
  restore.later((end) => {
    const kept = restore.open(id);
    for (const watch of ify.wd.toSorted((a, b) => a.wd - b.wd))
      addWatch(end, { id, fd: kept, watch }, restore);
  });
  return fd;
}

function dropOwnEvents(program: Program, { id, ify }: FileEntry, fd: number): void {
  assert(ify !== undefined, `file ${id} is no inotify`);
  if (ify.wd.length === 0) return;
  const flags = ify.flags & ~O_ASYNC;
  program.call("fcntl", [fd, F_SETFL, flags | O_NONBLOCK]);
  program.call("read", [fd, program.output(OWN_EVENTS_SIZE), OWN_EVENTS_SIZE], { mayFail: true });
  program.call("fcntl", [fd, F_SETFL, flags]);
}

function addWatch(
  program: Program,
  { id, fd, watch }: { readonly id: number; readonly fd: Argument; readonly watch: InotifyWdEntry },
  restore: FilesRestore,
): void {
  const path = pathOfGhost(program, watch, restore) ?? watch.f_handle.path;
  restore.inMountsOf(program, watch.f_handle.mnt_id);
  const what = `watch ${watch.wd} of inotify ${id}`;
  program.call("ioctl", [fd, INOTIFY_IOC_SETNEXTWD, watch.wd], {
    label: `choose the number of ${what}`,
    hint: "The kernel needs CONFIG_CHECKPOINT_RESTORE for this.",
  });
  if (path === undefined) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot restore ${what}: the image names its file only by a handle`,
      {
        hint: "Restore this set with criu, or dump the tree again with Reprise, which saves the path.",
      },
    );
  }
  const follow = watch.f_handle.symlink === true ? IN_DONT_FOLLOW : 0;
  // A watch for nothing was asked for with a bit that the kernel does not keep.
  const events = watch.mask & USER_MASK;
  const mask = ((events === 0 ? IN_UNMOUNT : events) | follow) >>> 0;
  program.call("inotify_add_watch", [fd, pathArgument(program, path), mask], {
    label: `add ${what} on ${path}`,
  });
}

/** A way to a watched file that is deleted: it is open already. */
function pathOfGhost(
  program: Program,
  { s_dev, i_ino }: InotifyWdEntry,
  restore: FilesRestore,
): string | undefined {
  const ghost = ghostWithInode(restore.set, { dev: s_dev, ino: i_ino });
  if (ghost === undefined) return undefined;
  const fd = restore.reserve();
  program.call("dup3", [restore.open(ghost), fd, O_CLOEXEC]);
  return `/proc/self/fd/${fd}`;
}

function warnOfEvents(file: OpenFile, dump: FilesDump): void {
  const waiting = Buffer.alloc(4);
  syscall("ioctl", dump.borrow(file), FIONREAD, waiting);
  const bytes = waiting.readInt32LE(0);
  if (bytes === 0) return;
  log.loss(
    `inotify fd ${file.fd} of pid ${file.task.pid}: ${bytes} bytes of queued events will be lost`,
  );
}

function watchEntry(
  mark: InotifyMark,
  { mnt_id, device = mark.sdev, ...found }: WatchedPath & { readonly mnt_id?: number },
): InotifyWdEntry {
  return {
    id: 0,
    i_ino: mark.ino,
    mask: mark.mask,
    ignored_mask: mark.ignoredMask,
    s_dev: device,
    wd: mark.wd,
    f_handle: {
      ...handleEntry(mark.handle, found),
      ...(mnt_id === undefined ? {} : { mnt_id }),
    },
  };
}

/** The handle's bytes in words of 8, little-endian, filled with zeros to the kernel's maximum. */
export function handleEntry(handle: FileHandle | undefined, found: WatchedPath): FhEntry {
  const bytes = Buffer.alloc(MAX_HANDLE_SZ);
  bytes.set(handle?.bytes ?? []);
  const words = Array.from({ length: HANDLE_WORDS }, (_, index) =>
    bytes.readBigUInt64LE(index * 8),
  );
  return { bytes: handle?.bytes.length ?? 0, type: handle?.type ?? 0, handle: words, ...found };
}
