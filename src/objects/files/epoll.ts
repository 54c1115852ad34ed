// epoll: a set of watched files, see epoll(7) and fs/eventpoll.c. The kernel remembers a target as a file plus the number
// that it had when it was added, and fdinfo shows that number; by now it may be closed, moved by dup or another file's.
// kcmp(2) with KCMP_EPOLL_TFD tells whether a descriptor of the task is the very file of a target. At restore, targets are
// added when all descriptors are in place; that is also the order in which epolls can watch each other.

import { assert, RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import {
  FdTypes,
  type EventpollFileEntry,
  type EventpollTfdEntry,
  type FileEntry,
  type RepriseEpollTarget,
} from "../../images/schema/messages.generated.ts";
import { readFdNumbers } from "../../proc/fd.ts";
import type { EpollTarget } from "../../proc/fdinfo.ts";
import {
  EPIOCGPARAMS,
  EPIOCSPARAMS,
  EPOLL_PARAMS_SIZE,
  EP_PRIVATE_BITS,
  EPOLLONESHOT,
  EPOLL_CTL_ADD,
  EPOLL_CTL_MOD,
  EPOLL_EVENTS,
  EPOLL_EVENT_SIZE,
  KCMP_EPOLL_TFD,
} from "../../sys/abi/event-files.ts";
import { F_GETFD, F_SETFD, O_CLOEXEC, S_IFMT, S_IFSOCK } from "../../sys/abi/fcntl.ts";
import { EBADF, ENOENT } from "../../sys/errno.ts";
import { syscallError, trySyscall } from "../../sys/ffi.ts";
import { readStat } from "../../sys/files.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { readOwner, restoreOwner } from "./owner.ts";
import type { FileKind, FilesDump, FilesRestore, OpenFile } from "./file-kind.ts";

export const epollKind: FileKind = {
  name: "epoll",
  type: FdTypes.EVENTPOLL,
  recognise: ({ target }) => target === "anon_inode:[eventpoll]",
  write: writeEpoll,
  open: openEpoll,
  settle: addTargets,
};

function writeEpoll(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const flags = file.info.flags & ~O_CLOEXEC;
  const elsewhere: RepriseEpollTarget[] = [];
  const tfd = file.info.epoll.length === 0 ? [] : locateTargets(file, dump, elsewhere);
  const polling = busyPolling(dump.borrow(file));
  return {
    type: FdTypes.EVENTPOLL,
    id,
    epfd: {
      id,
      flags,
      fown: readOwner(file, dump),
      tfd,
      elsewhere,
      ...(polling === undefined ? {} : { busy_poll: polling }),
    },
  };
}

/** How long and how much the device is asked before a wait sleeps, if that was set. Before Linux 6.9 it cannot be. */
function busyPolling(fd: number): Uint8Array | undefined {
  const parameters = Buffer.alloc(EPOLL_PARAMS_SIZE);
  const asked = trySyscall("ioctl", fd, EPIOCGPARAMS, parameters);
  return asked < 0 || parameters.every((byte) => byte === 0) ? undefined : parameters;
}

function openEpoll(program: Program, { id, epfd }: FileEntry, restore: FilesRestore): Argument {
  assert(epfd !== undefined, `file ${id} is no epoll`);
  const fd = program.call("epoll_create1", [0], { label: `make epoll ${id}` });
  restoreOwner(program, epfd.fown, fd);
  if (epfd.busy_poll !== undefined)
    program.call("ioctl", [fd, EPIOCSPARAMS, program.data(epfd.busy_poll)], {
      label: `set the busy polling of epoll ${id}`,
    });
  // What others have is open by then; what is in flight may have been found by its queue.
  if (epfd.elsewhere.length > 0) {
    const spare = restore.reserve();
    spares.set(epfd, spare);
    restore.later(() => epfd.elsewhere.forEach(({ file_id }) => void restore.open(file_id)));
  }
  return fd;
}

/** A number for what is in the place of a target that the task has not open itself. */
const spares = new WeakMap<EventpollFileEntry, number>();

/** Targets whose one shot was fired come first: they are fired again while there are no others. */
function addTargets(program: Program, entry: FileEntry, fd: number, restore: FilesRestore): void {
  const { id, epfd } = entry;
  assert(epfd !== undefined, `file ${id} is no epoll`);
  const [fired, others] = [true, false].map((is) => epfd.tfd.filter((one) => isFired(one) === is));
  for (const target of fired ?? []) addFired(program, { id, fd }, target);
  for (const target of others ?? []) addTarget(program, { id, fd }, target);
  for (const target of epfd.elsewhere) addElsewhere(program, { id, fd, epfd }, { target, restore });
}

/** No event bits are left. */
function isFired({ events }: EventpollTfdEntry): boolean {
  return (events & EPOLLONESHOT) !== 0 && (events & EPOLL_EVENTS) === 0;
}

/**
 * The kernel adds EPOLLERR and EPOLLHUP to whatever it is given, so only firing leaves a target with no bits. One that is not ready for
 * anything now can fire once more, if it hangs up before it is armed again; there is no call that avoids this.
 */
function addFired(
  program: Program,
  { id, fd }: { readonly id: number; readonly fd: number },
  target: EventpollTfdEntry,
): void {
  addTarget(program, { id, fd }, { ...target, events: (target.events | EPOLL_EVENTS) >>> 0 });
  const label = `watch fd ${target.tfd} with epoll ${id}, fired`;
  const count = program.call("epoll_wait", [fd, program.output(EPOLL_EVENT_SIZE), 1, 0], { label });
  // A program cannot choose: where it has fired, the number of the operation is none that there is.
  const operation = { ...count, plus: EPOLL_CTL_MOD };
  const event = program.data(eventBytes(target));
  program.call("epoll_ctl", [fd, operation, target.tfd, event], { label, mayFail: true });
}

function eventBytes({ events, data }: Pick<EventpollTfdEntry, "events" | "data">): Buffer {
  const event = Buffer.alloc(EPOLL_EVENT_SIZE);
  event.writeUInt32LE(events, 0);
  event.writeBigUInt64LE(data, 4);
  return event;
}

function addTarget(
  program: Program,
  { id, fd }: { readonly id: number; readonly fd: number },
  { tfd, ...watched }: Pick<EventpollTfdEntry, "tfd" | "events" | "data">,
): void {
  program.call("epoll_ctl", [fd, EPOLL_CTL_ADD, tfd, program.data(eventBytes(watched))], {
    label: `watch fd ${tfd} with epoll ${id}`,
  });
}

/** The target takes its old number for a moment. What has it now steps aside, and comes back as it was. */
function addElsewhere(
  program: Program,
  epoll: { readonly id: number; readonly fd: number; readonly epfd: EventpollFileEntry },
  { target, restore }: { readonly target: RepriseEpollTarget; readonly restore: FilesRestore },
): void {
  const { tfd, file_id } = target;
  const spare = spares.get(epoll.epfd);
  assert(spare !== undefined, `epoll ${epoll.id} has no number to spare`);
  const mayFail = true;
  // Where that is the epoll itself, it is reached by its other number.
  const fd = epoll.fd === tfd ? spare : epoll.fd;
  const flags = program.call("fcntl", [tfd, F_GETFD, 0], { mayFail });
  program.call("dup3", [tfd, spare, O_CLOEXEC], { mayFail });
  program.call("dup3", [restore.open(file_id), tfd, O_CLOEXEC], {
    label: `take file ${file_id} for epoll ${epoll.id}`,
  });
  addTarget(program, { id: epoll.id, fd }, target);
  program.call("close", [tfd]);
  program.call("dup3", [spare, tfd, 0], { mayFail });
  program.call("fcntl", [tfd, F_SETFD, flags], { mayFail });
  program.call("close", [spare], { mayFail });
}

function locateTargets(
  file: OpenFile,
  dump: FilesDump,
  elsewhere: RepriseEpollTarget[],
): EventpollTfdEntry[] {
  const owner =
    file.fd >= 0
      ? { pid: file.task.pid, fd: file.fd }
      : { pid: process.pid, fd: dump.borrow(file) };
  const isLarge = file.info.epoll.length > FEW_TARGETS;
  const { pid } = file.near ?? file.task;
  const search: Search = { pid, owner, isLarge, numbers: undefined };
  return numberTargets(file.info.epoll).flatMap(({ target, offset }) => {
    const tfd = currentNumber(search, target, offset);
    if (tfd === undefined) {
      dump.later(() => elsewhere.push(findElsewhere(file, dump, { search, target, offset })));
      return [];
    }
    if (tfd !== target.tfd)
      log.debug(
        `epoll fd ${file.fd} of pid ${file.task.pid}: target ${target.tfd} is fd ${tfd} now`,
      );
    if ((target.events & ~EP_PRIVATE_BITS) === 0)
      log.debug(`epoll fd ${file.fd} of pid ${file.task.pid}: target ${tfd} is switched off`);
    return {
      id: 0,
      tfd,
      events: target.events,
      data: target.data,
      pos: target.pos,
      ...(target.sdev === undefined ? {} : { dev: target.sdev }),
      ...(target.ino === undefined ? {} : { inode: target.ino }),
    };
  });
}

/** A target that the task has closed, and that another one has open, or that is in flight. */
function findElsewhere(
  file: OpenFile,
  dump: FilesDump,
  wanted: { readonly search: Search; readonly target: EpollTarget; readonly offset: number },
): RepriseEpollTarget {
  const { search, target, offset } = wanted;
  const slot = slotOf(search, target, offset);
  const found = dump.findDescription(({ pid, fd }) => isTarget({ ...search, pid }, fd, slot));
  // A pidfd is made anew in each task that has it.
  if (found === undefined || found.type === FdTypes.PIDFD) throw lostTarget(file, target);
  return { file_id: found.id, tfd: target.tfd, events: target.events, data: target.data };
}

/**
 * Targets with their place among those of the same number, in the order of fdinfo: this pair is the kernel's name for a
 * target. Several have one number when it was reused while dups kept the earlier files open.
 */
export function numberTargets(
  targets: readonly EpollTarget[],
): { readonly target: EpollTarget; readonly offset: number }[] {
  const seen = new Map<number, number>();
  return targets.map((target) => {
    const offset = seen.get(target.tfd) ?? 0;
    seen.set(target.tfd, offset + 1);
    return { target, offset };
  });
}

interface Search {
  /** The task whose descriptors are searched. */
  readonly pid: number;
  /** Where the epoll itself is open. */
  readonly owner: { readonly pid: number; readonly fd: number };
  readonly isLarge: boolean;
  /** All descriptors of the task, read at the first target that moved. */
  numbers: readonly number[] | undefined;
}

/** struct kcmp_epoll_slot: the epoll, the number of the target, its place among those of that number. */
function slotOf({ owner }: Search, { tfd }: EpollTarget, offset: number): Buffer {
  const slot = Buffer.alloc(12);
  slot.writeUInt32LE(owner.fd, 0);
  slot.writeUInt32LE(tfd, 4);
  slot.writeUInt32LE(offset, 8);
  return slot;
}

function currentNumber(search: Search, target: EpollTarget, offset: number): number | undefined {
  const { tfd } = target;
  if (search.isLarge && isSameSocket(search, target)) return tfd;
  const slot = slotOf(search, target, offset);
  if (isTarget(search, tfd, slot)) return tfd;
  search.numbers ??= readFdNumbers(search.pid);
  return search.numbers.find((fd) => isTarget(search, fd, slot));
}

/**
 * Whether the number of a target leads to a socket with its inode: of a socket there is but one open file. To be compared, a target is
 * looked for among all that the epoll watches, one after the other (fs/eventpoll.c, ep_find_tfd), and servers watch thousands.
 */
function isSameSocket({ pid }: Search, { tfd, ino, sdev }: EpollTarget): boolean {
  const stat = readStat(`/proc/${pid}/fd/${tfd}`);
  if (typeof stat === "number" || (stat.mode & S_IFMT) !== S_IFSOCK) return false;
  return stat.inode === ino && stat.devMajor === 0 && stat.devMinor === sdev;
}

/** Targets that are compared in no time. */
const FEW_TARGETS = 100;

/** @throws RepriseError SYSCALL when the kernel cannot compare. */
function isTarget({ pid, owner }: Search, fd: number, slot: Buffer): boolean {
  const order = trySyscall("kcmp", pid, owner.pid, KCMP_EPOLL_TFD, fd, slot);
  if (order >= 0) return order === 0;
  if (order === -EBADF || order === -ENOENT) return false;
  throw syscallError("kcmp", -order, `compare fd ${fd} of pid ${pid} with the targets of an epoll`);
}

function lostTarget({ task, fd }: OpenFile, target: EpollTarget): RepriseError {
  const what = `a file that was added as fd ${target.tfd} (inode ${target.ino ?? "unknown"})`;
  return new RepriseError(
    "UNSUPPORTED",
    `cannot dump epoll fd ${fd} of pid ${task.pid}: it watches ${what}, which no process of the tree has a descriptor of any more`,
    {
      pid: task.pid,
      fd,
      hint: "A process outside of the tree keeps that file open, or it is a pidfd. The program should remove it from the epoll before it closes its own descriptor.",
    },
  );
}
