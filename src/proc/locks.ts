// The `lock:` lines of /proc/PID/fdinfo/FD, in the form of /proc/locks: see proc_locks(5) and lock_get_status
// in fs/locks.c. `1: POSIX  ADVISORY  WRITE 4242 fe:00:2146795 5 14`: number, kind, mode, access, owner,
// device:device:inode, first and last byte. Device numbers are hexadecimal, the inode is decimal.

/** One held lock or lease. */
export interface LockLine {
  /** POSIX (of the process), OFDLCK (of the open file), FLOCK (whole file), LEASE, DELEG, and what may come. */
  readonly kind: string;
  /** ADVISORY, MANDATORY; of a lease ACTIVE, BREAKING, BREAKER. */
  readonly mode: string;
  /** READ, WRITE, UNLCK; of a breaking lease what it goes to. */
  readonly access: string;
  /** Owner's pid; -1 for a lock of an open file, 0 when the owner is not visible. */
  readonly pid: number;
  readonly devMajor: number;
  readonly devMinor: number;
  readonly inode: bigint;
  readonly start: bigint;
  /** Last byte, or "EOF" for no end. */
  readonly end: bigint | "EOF";
}

/** Parses what stands behind `lock:`. */
export function parseLock(text: string): LockLine {
  const words = text.trim().split(/\s+/);
  const [kind = "", mode = "", access = "", pid = "0", file = "", start = "0", end = "EOF"] =
    words.slice(1);
  const [major = "0", minor = "0", inode = "0"] = file.split(":");
  return {
    kind,
    mode,
    access,
    pid: Number(pid),
    // A lock whose file is gone says `<none>`.
    devMajor: Number.parseInt(major, 16) || 0,
    devMinor: Number.parseInt(minor, 16) || 0,
    inode: BigInt(inode),
    start: BigInt(start),
    end: end === "EOF" ? "EOF" : BigInt(end),
  };
}
