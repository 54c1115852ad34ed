// How a ring is set up: io_uring_setup(2).

import { closeSync } from "node:fs";
import type { RepriseIoUringEntry } from "../../images/schema/messages.generated.ts";
import * as uring from "../../sys/abi/io-uring.ts";
import { syscall } from "../../sys/ffi.ts";

export type RingShape = Pick<
  RepriseIoUringEntry,
  "setup_flags" | "sq_entries" | "cq_entries" | "sq_thread_idle" | "sq_thread_cpu"
>;

/** struct io_uring_params for a new ring, with further flags. */
export function paramsOf(ring: RingShape, more: number): Buffer {
  const params = Buffer.alloc(uring.PARAMS_SIZE);
  params.writeUInt32LE(ring.cq_entries, uring.PARAMS_CQ_ENTRIES);
  params.writeUInt32LE(ring.setup_flags | uring.IORING_SETUP_CQSIZE | more, uring.PARAMS_FLAGS);
  params.writeUInt32LE(ring.sq_thread_cpu ?? 0, uring.PARAMS_SQ_THREAD_CPU);
  params.writeUInt32LE(ring.sq_thread_idle ?? 0, uring.PARAMS_SQ_THREAD_IDLE);
  return params;
}

/** What decides where everything lies in a ring's memory. */
const LAYOUT_FLAGS =
  uring.IORING_SETUP_SQE128 | uring.IORING_SETUP_CQE32 | uring.IORING_SETUP_NO_SQARRAY;

/** Where everything lies in the memory of such a ring, which the kernel tells who makes one. */
export function offsetsOf(ring: RingShape): Pick<RepriseIoUringEntry, "sq_off" | "cq_off"> {
  const { sq_entries, cq_entries, setup_flags } = ring;
  const plain = { sq_entries, cq_entries, setup_flags: setup_flags & LAYOUT_FLAGS };
  const params = paramsOf(plain, 0);
  closeSync(syscall("io_uring_setup", sq_entries, params));
  const part = (start: number): Buffer => params.subarray(start, start + uring.OFFSETS_USER_ADDR);
  return { sq_off: part(uring.PARAMS_SQ_OFF), cq_off: part(uring.PARAMS_CQ_OFF) };
}

/** Ways of setting up that a new ring can have as well. */
export const KEPT_FLAGS =
  uring.IORING_SETUP_IOPOLL |
  uring.IORING_SETUP_SQPOLL |
  uring.IORING_SETUP_SQ_AFF |
  uring.IORING_SETUP_R_DISABLED |
  uring.IORING_SETUP_SUBMIT_ALL |
  uring.IORING_SETUP_COOP_TASKRUN |
  uring.IORING_SETUP_TASKRUN_FLAG |
  uring.IORING_SETUP_SQE128 |
  uring.IORING_SETUP_CQE32 |
  uring.IORING_SETUP_SINGLE_ISSUER |
  uring.IORING_SETUP_DEFER_TASKRUN |
  uring.IORING_SETUP_NO_SQARRAY;

/** A ring that belongs to a process or to one of its threads, and is made by that. */
export function isMadeByOwner({ setup_flags }: Pick<RingShape, "setup_flags">): boolean {
  return (setup_flags & (uring.IORING_SETUP_SQPOLL | uring.IORING_SETUP_SINGLE_ISSUER)) !== 0;
}

/** Whether an array says which entries are in the queue. */
export function hasArray({ setup_flags }: Pick<RingShape, "setup_flags">): boolean {
  return (setup_flags & uring.IORING_SETUP_NO_SQARRAY) === 0;
}
