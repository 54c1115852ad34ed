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
