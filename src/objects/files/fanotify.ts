// fanotify: marks on inodes, mounts and file systems and a queue of events, see fanotify(7) and fs/notify/fanotify. Like
// inotify, fdinfo tells inodes by file handles, for which paths are found (watched-path.ts). Queued events are lost: they hold
// open files. The marks are set by the engine as the very last step, so that the restore itself is no event.
//
// A group that decides about others' accesses (permission events) would make the dump and everybody else wait for a listener
// that is stopped, so it is refused.

import { assert, RepriseError } from "../../errors.ts";
import { textToBytes } from "../../images/text.ts";
import { log } from "../../log.ts";
import {
  FdTypes,
  MarkType,
  type FanotifyMarkEntry,
  type FileEntry,
} from "../../images/schema/messages.generated.ts";
import type { FanotifyLine } from "../../proc/notify-marks.ts";
import { readMountinfo } from "../../proc/mountinfo.ts";
import {
  FAN_MARK_ADD,
  FAN_MARK_DONT_FOLLOW,
  FAN_MARK_FILESYSTEM,
  FAN_MARK_IGNORE,
  FAN_MARK_IGNORED_MASK,
  FAN_MARK_MOUNT,
  FAN_PERMISSION_EVENTS,
} from "../../sys/abi/event-files.ts";
import {
  AT_FDCWD,
  F_SETFL,
  FIONREAD,
  O_CLOEXEC,
  O_DIRECTORY,
  O_NONBLOCK,
  O_PATH,
} from "../../sys/abi/fcntl.ts";
import { errnoName } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { FileKind, FilesDump, FilesRestore, OpenFile } from "./file-kind.ts";
import { ghostWithInode } from "./path-for-opening.ts";
import { handleEntry } from "./inotify.ts";
import { readOwner, restoreOwner } from "./owner.ts";
import { PathFinder } from "./watched-path.ts";

export const fanotifyKind: FileKind = {
  name: "fanotify",
  type: FdTypes.FANOTIFY,
  recognise: ({ target }) => target === "anon_inode:[fanotify]",
  write: writeFanotify,
  open: openFanotify,
};

/** Of ours, beside CRIU's INODE and MOUNT: a mark on a whole file system, known by a mount of it. */
const FILESYSTEM = 3;

type Mark = Exclude<FanotifyLine, { kind: "group" }>;

function writeFanotify(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const { info, task, fd } = file;
  const group = info.fanotify.find((line) => line.kind === "group");
  if (group === undefined) throw refused(file, "the kernel does not tell how it was made");
  warnOfEvents(file, dump);
  const marks = info.fanotify.filter((line): line is Mark => line.kind !== "group");
  if (marks.some(({ mask }) => (mask & FAN_PERMISSION_EVENTS) !== 0))
    throw refused(file, `it decides about accesses of others (permission events)`);
  using finder = new PathFinder(file);
  const mark = marks.map((line) => markEntry(line, { file, finder }));
  log.debug(`fanotify fd ${fd} of pid ${task.pid}: ${mark.length} marks`);
  const ffy = {
    id,
    flags: info.flags & ~O_CLOEXEC,
    fown: readOwner(file, dump),
    faflags: group.flags,
    evflags: group.eventFlags,
    mark,
  };
  return { type: FdTypes.FANOTIFY, id, ffy };
}

function markEntry(
  line: Mark,
  { file, finder }: { readonly file: OpenFile; readonly finder: PathFinder },
): FanotifyMarkEntry {
  const masks = {
    id: 0,
    mflags: line.mflags,
    mask: line.mask,
    ignored_mask: line.ignoredMask,
    s_dev: 0,
  };
  switch (line.kind) {
    case "inode": {
      const { ino, sdev, handle } = line;
      const watched = { wd: -1, ino, sdev, mask: 0, ignoredMask: 0, handle };
      const { device = sdev, ...found } = finder.find(watched);
      const ie = { i_ino: ino, f_handle: handleEntry(handle, found) };
      return { ...masks, type: MarkType.INODE, s_dev: device, ie };
    }
    case "mount": {
      const mounts = readMountinfo(file.task.pid);
      const mount = mounts.find(({ mntId }) => mntId === line.mntId);
      if (mount === undefined) throw refused(file, `it marks mount ${line.mntId} of elsewhere`);
      const me = { mnt_id: line.mntId, path: mount.mountPoint };
      return { ...masks, type: MarkType.MOUNT, me };
    }
    case "filesystem": {
      const mount = finder.mountOf(line.sdev);
      if (mount === undefined) throw refused(file, "it marks a file system that is not mounted");
      const me = { mnt_id: mount.mntId, path: mount.mountPoint };
      return { ...masks, type: FILESYSTEM, s_dev: line.sdev, me };
    }
    case "mount namespace":
      throw refused(file, "it marks a mount namespace");
  }
}

function openFanotify(program: Program, { id, ffy }: FileEntry, restore: FilesRestore): Argument {
  assert(ffy !== undefined, `file ${id} is no fanotify`);
  const fd = program.call("fanotify_init", [ffy.faflags, ffy.evflags], {
    label: `make fanotify ${id}`,
    hint: "The kernel's limit on fanotify groups may be reached (fs.fanotify.max_user_groups).",
  });
  // It may have been changed since; fdinfo shows what the group was made with.
  program.call("fcntl", [fd, F_SETFL, ffy.flags & O_NONBLOCK]);
  restoreOwner(program, ffy.fown, fd);
  const root = restore.reserve();
  const opened = program.call("openat", [AT_FDCWD, program.string("/"), O_PATH | O_DIRECTORY, 0]);
  program.call("dup3", [opened, root, O_CLOEXEC]);
  program.call("close", [opened]);
  // Deleted files are open by then.
  const ghosts = ffy.mark.map((mark) => ghostOf(mark, restore));
  for (const ghost of ghosts) if (ghost !== undefined) restore.open(ghost);
  restore.inEngine((copies) => {
    const copy = copies.file(id);
    const rootCopy = copies.reserved(root);
    const places = ffy.mark.map((mark, index) => {
      const ghost = ghosts[index];
      if (ghost !== undefined) return { directory: copies.file(ghost), path: undefined };
      return { directory: rootCopy, path: pathOf(mark, id) };
    });
    // The kernel lists the newest first.
    const release = (): void =>
      [...ffy.mark.entries()]
        .toReversed()
        .forEach(([index, mark]) => addMark(copy, mark, places[index] as MarkPlace));
    restore.atEnd({ release });
  });
  return fd;
}

/** A directory and a path from it, or the marked file itself. */
interface MarkPlace {
  readonly directory: number;
  readonly path: string | undefined;
}

function ghostOf({ s_dev, ie }: FanotifyMarkEntry, restore: FilesRestore): number | undefined {
  return ie === undefined ? undefined : ghostWithInode(restore.set, { dev: s_dev, ino: ie.i_ino });
}

function pathOf({ ie, me }: FanotifyMarkEntry, id: number): string {
  const path = ie?.f_handle.path ?? me?.path;
  if (path === undefined) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot restore fanotify ${id}: the image names a marked file only by a handle`,
      {
        hint: "Restore this set with criu, or dump the tree again with Reprise, which saves the path.",
      },
    );
  }
  return path;
}

const TYPE_FLAGS: Readonly<Record<number, number>> = {
  [MarkType.INODE]: 0,
  [MarkType.MOUNT]: FAN_MARK_MOUNT,
  [FILESYSTEM]: FAN_MARK_FILESYSTEM,
};

function addMark(fd: number, mark: FanotifyMarkEntry, place: MarkPlace): void {
  const type = TYPE_FLAGS[mark.type];
  if (type === undefined)
    throw new RepriseError("BAD_IMAGE", `cannot restore a fanotify mark of type ${mark.type}`);
  const follow = mark.ie?.f_handle.symlink === true ? FAN_MARK_DONT_FOLLOW : 0;
  const flags = FAN_MARK_ADD | type | mark.mflags | follow;
  const ignoring = (mark.mflags & FAN_MARK_IGNORE) === 0 ? FAN_MARK_IGNORED_MASK : FAN_MARK_IGNORE;
  if (mark.mask !== 0) set(fd, { flags: flags & ~FAN_MARK_IGNORE, mask: mark.mask }, place);
  if (mark.ignored_mask !== 0) set(fd, { flags: flags | ignoring, mask: mark.ignored_mask }, place);
}

function set(
  fd: number,
  { flags, mask }: { readonly flags: number; readonly mask: number },
  { directory, path }: MarkPlace,
): void {
  const relative = path === undefined ? 0 : Buffer.concat([textToBytes(`.${path}`), Buffer.of(0)]);
  const result = trySyscall("fanotify_mark", fd, flags, mask, directory, relative);
  if (result >= 0) return;
  throw new RepriseError(
    "SYSCALL",
    `cannot mark ${path ?? "a deleted file"} for fanotify: fanotify_mark: ${errnoName(-result)}`,
    {
      syscall: "fanotify_mark",
      errno: errnoName(-result),
      hint: "The marked file must be there, as it was at the dump.",
    },
  );
}

function warnOfEvents(file: OpenFile, dump: FilesDump): void {
  const waiting = Buffer.alloc(4);
  syscall("ioctl", dump.borrow(file), FIONREAD, waiting);
  if (waiting.readInt32LE(0) === 0) return;
  log.loss(`fanotify fd ${file.fd} of pid ${file.task.pid}: queued events will be lost`);
}

function refused({ task, fd }: OpenFile, why: string): RepriseError {
  const message = `cannot dump fanotify fd ${fd} of pid ${task.pid}: ${why}`;
  const hint = "Have the program close it for the time of the dump.";
  return new RepriseError("UNSUPPORTED", message, { pid: task.pid, fd, hint });
}
