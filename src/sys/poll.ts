// Waiting for descriptors of this process: ppoll(2).

import { POLLIN } from "./abi/poll.ts";
import { EINTR } from "./errno.ts";
import { syscallError, trySyscall } from "./ffi.ts";
import { writeU64 } from "./memory.ts";

/** struct pollfd: descriptor, wanted events, found events. */
const POLLFD_SIZE = 8;

/**
 * Waits until one of some descriptors can be read, has an error or its other end is closed.
 *
 * @param timeoutMs undefined waits for ever
 * @throws RepriseError SYSCALL
 */
export function waitReadable(fds: readonly number[], timeoutMs?: number): ReadonlySet<number> {
  const table = Buffer.alloc(fds.length * POLLFD_SIZE);
  fds.forEach((fd, index) => {
    table.writeInt32LE(fd, index * POLLFD_SIZE);
    table.writeUInt16LE(POLLIN, index * POLLFD_SIZE + 4);
  });
  const timeout = Buffer.alloc(16);
  writeU64(timeout, 0, Math.floor((timeoutMs ?? 0) / 1000));
  writeU64(timeout, 8, ((timeoutMs ?? 0) % 1000) * 1_000_000);
  for (;;) {
    const limit = timeoutMs === undefined ? 0 : timeout;
    const result = trySyscall("ppoll", table, fds.length, limit, 0, 0);
    if (result === -EINTR) continue;
    if (result < 0) throw syscallError("ppoll", -result);
    return new Set(fds.filter((_, index) => table.readUInt16LE(index * POLLFD_SIZE + 6) !== 0));
  }
}

const lookup = Buffer.alloc(POLLFD_SIZE);
const NO_TIME = Buffer.alloc(16);

/**
 * What poll(2) tells of a descriptor at once: those of the events that were asked for, and POLLERR and POLLHUP unasked.
 *
 * @throws RepriseError SYSCALL
 */
export function pollNow(fd: number, events = 0): number {
  lookup.writeInt32LE(fd, 0);
  lookup.writeUInt32LE(events, 4);
  // A signal to the engine ends even a look.
  let result = -EINTR;
  while (result === -EINTR) result = trySyscall("ppoll", lookup, 1, NO_TIME, 0, 0);
  if (result < 0) throw syscallError("ppoll", -result);
  return lookup.readUInt16LE(6);
}
