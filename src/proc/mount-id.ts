// The mount on which a file was reached: statx(2) with STATX_MNT_ID, since Linux 5.8. The numbers are those of mountinfo.

import { AT_FDCWD, AT_NO_AUTOMOUNT, AT_SYMLINK_NOFOLLOW } from "../sys/abi/fcntl.ts";
import { trySyscall } from "../sys/ffi.ts";

const STATX_MNT_ID = 0x1000;
const STATX_SIZE = 256;
/** Offset of stx_mnt_id in struct statx. */
const MNT_ID_AT = 0x90;
const buffer = Buffer.alloc(STATX_SIZE);

/** Mount id of a file by its path (a link of /proc/PID is followed); undefined when there is nothing. */
export function mountIdOf(
  path: string | Uint8Array,
  options: { follow?: boolean } = {},
): number | undefined {
  const name = Buffer.concat([Buffer.from(path), Buffer.of(0)]);
  const flags = AT_NO_AUTOMOUNT | (options.follow === false ? AT_SYMLINK_NOFOLLOW : 0);
  const result = trySyscall("statx", AT_FDCWD, name, flags, STATX_MNT_ID, buffer);
  return result < 0 ? undefined : Number(buffer.readBigUInt64LE(MNT_ID_AT));
}
