// Requests of a ring that wait, and can be begun anew by whoever began them, as if nothing had been: those that wait for a file to become
// ready (in cancel_table, io_uring/poll.c) and have done nothing yet, and timeouts (timeout_list). Each becomes an entry of the queue as
// the program wrote it. All others are under way: a thread of the kernel works on them, or a part is done.

import { KernelObjects } from "../../sys/kernel-objects.ts";
import type { KernelMemory } from "../../sys/kernel-memory.ts";
import type { KernelTypes } from "../../sys/kernel-types.ts";
import * as uring from "../../sys/abi/io-uring.ts";
import { syscall } from "../../sys/ffi.ts";
import { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME } from "../../sys/abi/event-files.ts";

/** A request that waits. */
export interface PendingRequest {
  /** The thread that began it, by the kernel's own numbers. */
  readonly tid: number;
  readonly pid: number;
  /** Its file in the kernel; 0 for a timeout. */
  readonly file: bigint;
  /** The entry, but for the number of the file, or for the address of the time. */
  readonly entry: Buffer;
  /** Of a timeout: seconds and nanoseconds, as many as are left of a relative one. */
  readonly time: { readonly seconds: bigint; readonly nanoseconds: number } | undefined;
}

/** More than any ring has. */
const MANY = 0x1_0000;

/**
 * The requests that wait in a ring.
 *
 * @returns as many as there are, or why one of them cannot be begun anew
 */
export function pendingRequests(
  ring: bigint,
  memory: KernelMemory,
): readonly PendingRequest[] | string {
  const objects = new KernelObjects(memory);
  const found: PendingRequest[] = [];
  for (const request of waiting(ring, objects)) {
    const pending = describe(request, objects);
    if (typeof pending === "string") return pending;
    found.push(pending);
  }
  return found;
}

/**
 * Work that waits for the thread of a ring and is none of those requests: what another ring is about to post here, say.
 *
 * @returns how many
 */
export function foreignWork(ring: bigint, memory: KernelMemory): number {
  const objects = new KernelObjects(memory);
  const known = new Set(waiting(ring, objects));
  let count = 0;
  for (const list of ["work_llist", "retry_llist", "fallback_llist"]) {
    let node = objects.word(ring, `io_ring_ctx.${list}.first`);
    for (let seen = 0; node !== 0n && seen < MANY; seen++) {
      if (!known.has(objects.around(node, "io_kiocb.io_task_work.node"))) count += 1;
      node = objects.word(node, "llist_node.next");
    }
  }
  return count;
}

/** The requests (struct io_kiocb) that wait for files, and timeouts in the order in which they were begun. */
function waiting(ring: bigint, objects: KernelObjects): bigint[] {
  const buckets = objects.word(ring, "io_ring_ctx.cancel_table.hbs");
  const count = 1 << objects.number(ring, "io_ring_ctx.cancel_table.hash_bits");
  const size = objects.types.size("io_hash_bucket");
  const requests: bigint[] = [];
  for (let index = 0; index < count; index++) {
    let node = objects.word(buckets + BigInt(index * size), "io_hash_bucket.list.first");
    for (; node !== 0n && requests.length < MANY; node = objects.word(node, "hlist_node.next"))
      requests.push(objects.around(node, "io_kiocb.hash_node"));
  }
  const head = objects.at(ring, "io_ring_ctx.timeout_list");
  for (let at = objects.word(head, "list_head.next"); at !== head && requests.length < MANY;) {
    // The command is at the beginning of the request.
    requests.push(objects.around(at, "io_timeout.list"));
    at = objects.word(at, "list_head.next");
  }
  return requests;
}

/** What a request must not have: a part that is done, others that depend on it, credentials of its own, a buffer chosen already. */
const DISTURBING = [
  "REQ_F_IO_DRAIN_BIT",
  "REQ_F_LINK_BIT",
  "REQ_F_HARDLINK_BIT",
  "REQ_F_FORCE_ASYNC_BIT",
  "REQ_F_BUFFER_SELECT_BIT",
  "REQ_F_FAIL_BIT",
  "REQ_F_INFLIGHT_BIT",
  "REQ_F_LINK_TIMEOUT_BIT",
  "REQ_F_ARM_LTIMEOUT_BIT",
  "REQ_F_BUFFER_SELECTED_BIT",
  "REQ_F_BUFFER_RING_BIT",
  "REQ_F_CREDS_BIT",
];

function describe(request: bigint, objects: KernelObjects): PendingRequest | string {
  const opcode = objects.byte(request, "io_kiocb.opcode");
  const flags = objects.word(request, "io_kiocb.flags");
  const what = `a request of kind ${opcode}`;
  const disturbing = DISTURBING.find((name) => objects.hasBit(flags, name));
  if (disturbing !== undefined) return `${what} that is more than itself (${disturbing})`;
  if (objects.word(request, "io_kiocb.link") !== 0n) return `${what} with a successor`;
  // That its file has become ready, which its thread has not looked at yet, is found again.
  const isPolled = opcode !== uring.IORING_OP_TIMEOUT;
  if (isPolled && objects.number(request, "io_kiocb.poll_refs") >= POLL_CANCELLED)
    return `${what} that is being cancelled`;
  const build = BUILDERS.get(opcode);
  const entry = Buffer.alloc(uring.SQE_SIZE);
  entry.writeUInt8(opcode, uring.SQE_OPCODE);
  entry.writeUInt8(Number(flags & IOSQE_FLAGS), uring.SQE_FLAGS);
  entry.writeBigUInt64LE(objects.word(request, "io_kiocb.cqe.user_data"), uring.SQE_USER_DATA);
  const built =
    build === undefined ? `${what} that waits` : build({ request, flags, entry, objects });
  if (typeof built === "string") return built;
  const task = objects.word(objects.word(request, "io_kiocb.tctx"), "io_uring_task.task");
  return {
    tid: objects.number(task, "task_struct.pid"),
    pid: objects.number(task, "task_struct.tgid"),
    file: opcode === uring.IORING_OP_TIMEOUT ? 0n : objects.word(request, "io_kiocb.file"),
    entry,
    time: built,
  };
}

/** IOSQE_FIXED_FILE and IOSQE_CQE_SKIP_SUCCESS, which are bits of the request as well; others were refused. */
const IOSQE_FLAGS = 0xffn;
/** IO_POLL_CANCEL_FLAG, the highest bit. */
const POLL_CANCELLED = 0x8000_0000;

/** Looks for the names that are needed where requests wait: each takes its time once. */
export function preparePending(types: KernelTypes): void {
  for (const name of DISTURBING) types.constant(name);
}

interface Building {
  readonly request: bigint;
  readonly flags: bigint;
  readonly entry: Buffer;
  readonly objects: KernelObjects;
}

/** Writes the rest of an entry. @returns the time of a timeout, or why the request cannot be begun anew */
type Builder = (from: Building) => PendingRequest["time"] | string;

const BUILDERS: ReadonlyMap<number, Builder> = new Map([
  [uring.IORING_OP_POLL_ADD, buildPoll],
  [uring.IORING_OP_TIMEOUT, buildTimeout],
  [uring.IORING_OP_ACCEPT, buildAccept],
  [uring.IORING_OP_READ, buildTransfer],
  [uring.IORING_OP_WRITE, buildTransfer],
  [uring.IORING_OP_RECV, buildReceive],
]);

const EPOLLONESHOT = 0x4000_0000;
const EPOLLET = 0x8000_0000;

function buildPoll({ request, entry, objects }: Building): undefined {
  const events = objects.number(request, "io_poll.events");
  const multi = (events & EPOLLONESHOT) === 0 ? uring.IORING_POLL_ADD_MULTI : 0;
  const level = (events & EPOLLET) === 0 ? uring.IORING_POLL_ADD_LEVEL : 0;
  entry.writeUInt32LE(multi | level, uring.SQE_LEN);
  entry.writeUInt32LE((events & ~(EPOLLONESHOT | EPOLLET)) >>> 0, uring.SQE_OP_FLAGS);
  return undefined;
}

function buildAccept({ request, entry, objects }: Building): undefined | string {
  const word = (field: string): bigint => objects.word(request, `io_accept.${field}`);
  if (objects.number(request, "io_accept.file_slot") !== 0)
    return "an accept into a registered place";
  entry.writeBigUInt64LE(word("addr"), uring.SQE_ADDR);
  entry.writeBigUInt64LE(word("addr_len"), uring.SQE_OFF);
  entry.writeUInt32LE(objects.number(request, "io_accept.flags"), uring.SQE_OP_FLAGS);
  entry.writeUInt16LE(objects.number(request, "io_accept.iou_flags") & 0xffff, uring.SQE_IOPRIO);
  return undefined;
}

function buildTransfer({ request, flags, entry, objects }: Building): undefined | string {
  const data = objects.hasBit(flags, "REQ_F_ASYNC_DATA_BIT")
    ? objects.word(request, "io_kiocb.async_data")
    : 0n;
  if (data !== 0n && objects.word(data, "io_async_rw.bytes_done") !== 0n)
    return "a transfer of which a part is done";
  const position = objects.hasBit(flags, "REQ_F_CUR_POS_BIT")
    ? CURRENT_POSITION
    : objects.word(request, "io_rw.kiocb.ki_pos");
  entry.writeUInt16LE(objects.short(request, "io_rw.kiocb.ki_ioprio"), uring.SQE_IOPRIO);
  entry.writeBigUInt64LE(position, uring.SQE_OFF);
  entry.writeBigUInt64LE(objects.word(request, "io_rw.addr"), uring.SQE_ADDR);
  entry.writeUInt32LE(objects.number(request, "io_rw.len"), uring.SQE_LEN);
  entry.writeUInt32LE(objects.number(request, "io_rw.flags"), uring.SQE_OP_FLAGS);
  return undefined;
}

const CURRENT_POSITION = 0xffff_ffff_ffff_ffffn;

function buildReceive({ request, flags, entry, objects }: Building): undefined | string {
  if (objects.number(request, "io_sr_msg.done_io") !== 0)
    return "a reception of which a part is done";
  const how = objects.short(request, "io_sr_msg.flags") & RECEIVE_FLAGS;
  if ((how & ~uring.IORING_RECVSEND_POLL_FIRST) !== 0) return "a reception of an unusual kind";
  if (objects.hasBit(flags, "REQ_F_APOLL_MULTISHOT_BIT")) return "a reception of many messages";
  entry.writeBigUInt64LE(objects.word(request, "io_sr_msg.buf"), uring.SQE_ADDR);
  entry.writeUInt32LE(objects.number(request, "io_sr_msg.len"), uring.SQE_LEN);
  entry.writeUInt32LE(objects.number(request, "io_sr_msg.msg_flags"), uring.SQE_OP_FLAGS);
  entry.writeUInt16LE(how, uring.SQE_IOPRIO);
  return undefined;
}

/** The others are the kernel's own. */
const RECEIVE_FLAGS = 0xff;

function buildTimeout({ request, entry, objects }: Building): PendingRequest["time"] | string {
  if (objects.number(request, "io_timeout.off") !== 0)
    return "a timeout that a number of completions ends as well";
  const data = objects.word(request, "io_kiocb.async_data");
  const flags = objects.number(data, "io_timeout_data.flags");
  if ((flags & uring.IORING_TIMEOUT_MULTISHOT) !== 0) return "a timeout that repeats";
  entry.writeInt32LE(-1, uring.SQE_FD);
  entry.writeUInt32LE(1, uring.SQE_LEN);
  entry.writeUInt32LE(flags, uring.SQE_OP_FLAGS);
  const seconds = objects.word(data, "io_timeout_data.ts.tv_sec");
  const nanoseconds = Number(objects.word(data, "io_timeout_data.ts.tv_nsec"));
  if ((flags & uring.IORING_TIMEOUT_ABS) !== 0) return { seconds, nanoseconds };
  const end = objects.word(data, "io_timeout_data.timer.node.expires");
  const left = BigInt.asIntN(64, end) - now(clockOf(flags));
  const rest = left > 0n ? left : 0n;
  return { seconds: rest / SECOND, nanoseconds: Number(rest % SECOND) };
}

const SECOND = 1_000_000_000n;

function clockOf(flags: number): number {
  if ((flags & uring.IORING_TIMEOUT_BOOTTIME) !== 0) return CLOCK_BOOTTIME;
  return (flags & uring.IORING_TIMEOUT_REALTIME) === 0 ? CLOCK_MONOTONIC : CLOCK_REALTIME;
}

function now(clock: number): bigint {
  const time = Buffer.alloc(16);
  syscall("clock_gettime", clock, time);
  return time.readBigInt64LE(0) * SECOND + time.readBigInt64LE(8);
}
