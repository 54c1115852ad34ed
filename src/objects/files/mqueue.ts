// POSIX message queues, see mq_overview(7) and ipc/mqueue.c: a queue is an inode of the IPC namespace's own file system, opened by name.
// Nothing lets messages be looked at, so they are taken and sent again at once, in the same order, while nobody else runs. A queue
// that is still there at restore is opened as it is, like a file; one that is gone is made again with its messages.
//
// CRIU has no such kind. The entry is that of a regular file in /dev/mqueue, which CRIU can open where the queue is still there, with
// a message of ours.

import { closeSync, openSync, readFileSync, statfsSync } from "node:fs";
import { assert, RepriseError } from "../../errors.ts";
import {
  FdTypes,
  type FileEntry,
  type RepriseMqueueEntry,
} from "../../images/schema/messages.generated.ts";
import { readFdNumbers } from "../../proc/fd.ts";
import { readFdStat } from "../../proc/links.ts";
import {
  O_ACCMODE,
  O_CLOEXEC,
  O_CREAT,
  O_EXCL,
  O_NONBLOCK,
  O_PATH,
  O_RDWR,
  O_WRONLY,
  S_IFMT,
  S_IFREG,
  SEEK_SET,
} from "../../sys/abi/fcntl.ts";
import { EAGAIN, errnoName } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { KernelObjects } from "../../sys/kernel-objects.ts";
import { readU64, writeU64 } from "../../sys/memory.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { CLONE_NEWIPC, SIGEV_THREAD, SIGEVENT_SIZE } from "../../sys/abi/sched.ts";
import { goBack, openOwn } from "../namespaces/nested.ts";
import type { FileKind, FilesDump, FilesRestore, OpenFile } from "./file-kind.ts";
import { processNumber } from "../task/task.ts";
import { kernelMemory } from "./kernel-view.ts";
import { readOwner, restoreOwner } from "./owner.ts";

export const mqueueKind: FileKind = {
  name: "POSIX message queue",
  type: FdTypes.REG,
  recognise: isQueue,
  write: writeQueue,
  open: openMessageQueue,
};

const MQUEUE_MAGIC = 0x19800202;
/** Every queue says this size, whatever is in it (FILENT_SIZE). */
const SIZE = 80n;
const DELETED = " (deleted)";
/** struct mq_attr: flags, most messages, size of a message, messages now; then reserved words. */
const ATTR_SIZE = 64;
const ATTR_MAXMSG = 8;
const ATTR_MSGSIZE = 16;
const ATTR_CURMSGS = 24;

function isQueue({ stat, info, procPath }: OpenFile): boolean {
  if ((stat.mode & S_IFMT) !== S_IFREG || stat.size !== SIZE || stat.devMajor !== 0) return false;
  return (info.flags & O_PATH) === 0 && statfsSync(procPath).type === MQUEUE_MAGIC;
}

/** The content of queues that a dump has seen, by inode number. */
const contents = new WeakMap<FilesDump, Map<bigint, RepriseMqueueEntry["messages"]>>();

function writeQueue(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const { stat, target, info } = file;
  dump.mounts?.savedFiles.add(`${stat.devMajor}:${stat.devMinor}:${stat.inode}`); // fileKey of mounts/collect.ts
  const removed = target.endsWith(DELETED);
  const name = (removed ? target.slice(0, -DELETED.length) : target).slice(1);
  // A description of the engine's own: the task's may be for sending only.
  const fd = openSync(file.procPath, O_RDWR | O_NONBLOCK);
  try {
    const attributes = Buffer.alloc(ATTR_SIZE);
    syscall("mq_getsetattr", fd, 0, attributes);
    let known = contents.get(dump);
    if (known === undefined) contents.set(dump, (known = new Map()));
    const size = readU64(attributes, ATTR_MSGSIZE);
    const count = readU64(attributes, ATTR_CURMSGS);
    const before = known.get(stat.inode);
    const notification = before === undefined ? readNotification(file, fd, { dump, count }) : {};
    const messages = before ?? copyMessages(file, fd, size);
    known.set(stat.inode, messages);
    const reprise_mqueue = {
      id,
      flags: info.flags & ~O_CLOEXEC,
      fown: readOwner(file, dump),
      name,
      mode: stat.mode & 0o7777,
      uid: stat.uid,
      gid: stat.gid,
      maxmsg: readU64(attributes, ATTR_MAXMSG),
      msgsize: size,
      removed,
      ...(removed ? { inode: stat.inode } : {}),
      messages,
      ...notification,
      ...nestedNamespace(file, dump),
    };
    const { flags, fown } = reprise_mqueue;
    const reg = { id, flags, pos: info.pos, fown, name: `/dev/mqueue/${name}`, build_id: [] };
    return { type: FdTypes.REG, id, reg, reprise_mqueue };
  } finally {
    closeSync(fd);
  }
}

/** The IPC namespace of a queue, where that is not the root task's. It is taken to be that of the task. */
function nestedNamespace({ task }: OpenFile, { namespaces }: FilesDump): { ipc_ns_id?: number } {
  const found = namespaces?.ofTask(task.pid, "ipc");
  return found?.role === "nested" ? { ipc_ns_id: found.id } : {};
}

/**
 * Who is to be told of the next message (mq_notify): /proc tells the process, its signal and how; the value that goes with the signal is
 * in the kernel's memory alone (struct mqueue_inode_info).
 */
function readNotification(
  file: OpenFile,
  fd: number,
  { dump, count }: { readonly dump: FilesDump; readonly count: number },
): Pick<RepriseMqueueEntry, "notification"> {
  const text = readFileSync(file.procPath, "latin1");
  const [, method, signal, pid] = (NOTIFICATION.exec(text) ?? []).map(Number);
  if (method === undefined || signal === undefined || pid === undefined || pid === 0) return {};
  const who = `pid ${pid} waits to be told of its next message (mq_notify)`;
  const inner = dump.innerPid(pid);
  if (inner === undefined) throw refused(file, `${who}, and is not in the tree`);
  if (method === SIGEV_THREAD) throw refused(file, `${who} by a thread`);
  // They are taken and sent again, and the first of them would be told of.
  if (count > 0) throw refused(file, `${who} while messages wait`);
  // The first thread of the process may have ended.
  const place = pid === processNumber(file.task) ? file.task.pid : pid;
  const own = readFdNumbers(place).find((number) => {
    const { inode, devMajor, devMinor } = readFdStat(place, number);
    const { stat } = file;
    return inode === stat.inode && devMajor === stat.devMajor && devMinor === stat.devMinor;
  });
  if (own === undefined) throw refused(file, `${who}, and has not opened it`);
  const value = notificationValue(file, fd, dump);
  return { notification: { pid: inner, fd: own, method, signal, value } };
}

const NOTIFICATION = /NOTIFY:(\d+)\s+SIGNO:(\d+)\s+NOTIFY_PID:(\d+)/;

function notificationValue(file: OpenFile, fd: number, dump: FilesDump): bigint {
  try {
    const kernel = new KernelObjects(kernelMemory(dump));
    const inode = kernel.word(kernel.memory.file(fd, kernel.types), "file.f_inode");
    const queue = kernel.around(inode, "mqueue_inode_info.vfs_inode");
    return kernel.word(queue, "mqueue_inode_info.notify.sigev_value");
  } catch (error) {
    if (!(error instanceof RepriseError)) throw error;
    throw refused(
      file,
      `a notification waits (mq_notify), and its value cannot be read: ${error.message}`,
    );
  }
}

/** The process that is to be told of a queue's next message. */
export function notifiedProcess({ reprise_mqueue: queue }: FileEntry): number | undefined {
  return queue?.notification?.pid;
}

/**
 * Adds the call by which a process is told of the next message. Afterwards it must close no descriptor of the queue: that would be the
 * end of it.
 */
export function restoreNotification(program: Program, { reprise_mqueue: queue }: FileEntry): void {
  assert(queue?.notification !== undefined, "nobody is to be told of this queue");
  const { pid, fd, method, signal, value } = queue.notification;
  const event = Buffer.alloc(SIGEVENT_SIZE);
  event.writeBigUInt64LE(value, 0);
  event.writeInt32LE(signal, 8);
  event.writeInt32LE(method, 12);
  program.call("mq_notify", [fd, program.data(event)], {
    label: `have pid ${pid} told of the next message of queue /${queue.name}`,
    hint: "Another process may wait for it by now.",
  });
}

function copyMessages(file: OpenFile, fd: number, size: number): RepriseMqueueEntry["messages"] {
  const messages: { priority: number; data: Uint8Array }[] = [];
  const buffer = Buffer.alloc(size);
  const priority = Buffer.alloc(4);
  try {
    for (;;) {
      const got = trySyscall("mq_timedreceive", fd, buffer, size, priority, 0);
      if (got === -EAGAIN) break;
      if (got < 0)
        throw refused(file, `its messages cannot be read: mq_timedreceive: ${errnoName(-got)}`);
      messages.push({
        priority: priority.readUInt32LE(0),
        data: Buffer.from(buffer.subarray(0, got)),
      });
    }
  } finally {
    for (const { priority: value, data } of messages)
      syscall("mq_timedsend", fd, data, data.length, value, 0);
  }
  return messages;
}

/** Queues that the opening program has made, by name; a removed one has its own place. */
const made = new WeakMap<FilesRestore, Set<string>>();

/** Adds the calls that open a queue, and make it where it is gone. */
export function openMessageQueue(
  program: Program,
  { id, reg, reprise_mqueue: queue }: FileEntry,
  restore: FilesRestore,
): Argument {
  assert(queue !== undefined, `file ${id} is no message queue`);
  const label = `open message queue /${queue.name} (file ${id})`;
  const name = program.string(queue.removed ? standInName(queue) : queue.name);
  let known = made.get(restore);
  if (known === undefined) made.set(restore, (known = new Set()));
  const key = `${queue.ipc_ns_id ?? 0}:${queue.name}:${queue.removed}:${queue.inode ?? 0n}`;
  if (!known.has(key)) {
    known.add(key);
    inNamespaceOf(program, queue, restore, () => make(program, queue, { name, label }));
    if (queue.removed) {
      restore.later((end) =>
        inNamespaceOf(end, queue, restore, () => end.call("mq_unlink", [name], { label })),
      );
    }
  }
  const flags = queue.flags & (O_ACCMODE | O_NONBLOCK);
  const fd = inNamespaceOf(program, queue, restore, () =>
    program.call("mq_open", [name, flags, 0, 0], { label }),
  );
  // What is read of a queue as a file, its state in a line.
  if (reg !== undefined && reg.pos > 0n) program.call("lseek", [fd, reg.pos, SEEK_SET], { label });
  restoreOwner(program, queue.fown, fd);
  return fd;
}

/** Names of removed queues may be alike, and be those of an earlier restore. */
function standInName({ name, inode = 0n }: RepriseMqueueEntry): string {
  const first = name.replace(/\.reprise(\.\d+)?$/, "");
  return `${first.slice(0, LONGEST_FIRST_NAME)}.reprise.${inode}`;
}

/** Of the 255 bytes of a name, the rest has room for an inode number. */
const LONGEST_FIRST_NAME = 220;

/** Runs a step with the program in the IPC namespace of a queue, and comes back. */
function inNamespaceOf<T>(
  program: Program,
  { ipc_ns_id, name }: RepriseMqueueEntry,
  restore: FilesRestore,
  step: () => T,
): T {
  if (ipc_ns_id === undefined) return step();
  const there = restore.namespaceFd?.("ipc", ipc_ns_id);
  if (there === undefined) {
    throw new RepriseError(
      "BAD_IMAGE",
      `cannot restore message queue /${name}: no task lives in IPC namespace ${ipc_ns_id}`,
    );
  }
  const own = openOwn(program, "ipc");
  program.call("setns", [there, CLONE_NEWIPC], { label: "go to another IPC namespace" });
  const result = step();
  goBack(program, "ipc", own);
  return result;
}

/** Where the queue is there, all of this fails and does no harm. */
function make(
  program: Program,
  queue: RepriseMqueueEntry,
  { name, label }: { readonly name: Argument; readonly label: string },
): void {
  const may = { label, mayFail: true };
  const attributes = Buffer.alloc(ATTR_SIZE);
  writeU64(attributes, ATTR_MAXMSG, queue.maxmsg);
  writeU64(attributes, ATTR_MSGSIZE, queue.msgsize);
  const flags = O_WRONLY | O_CREAT | O_EXCL | O_NONBLOCK | O_CLOEXEC;
  const fd = program.call("mq_open", [name, flags, queue.mode, program.data(attributes)], may);
  for (const { priority, data } of queue.messages)
    program.call("mq_timedsend", [fd, program.data(data), data.length, priority, 0], may);
  program.call("fchown", [fd, queue.uid, queue.gid], may);
  program.call("fchmod", [fd, queue.mode], may);
  program.call("close", [fd], may);
}

function refused({ task, fd, target }: OpenFile, why: string): RepriseError {
  const message = `cannot dump fd ${fd} of pid ${task.pid} (message queue ${target}): ${why}`;
  const hint = "Have the program close the queue, or end its wait, for the time of the dump.";
  return new RepriseError("UNSUPPORTED", message, { pid: task.pid, fd, hint });
}
