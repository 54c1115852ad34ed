// /proc/PID/auxv: the vector of pairs (AT_… key, value) that execve or prctl(PR_SET_MM_AUXV) gave the process,
// as 64-bit words, ended by AT_NULL; see getauxval(3) and proc_pid_auxv(5).
import { readProcBytes, undefinedIfGone } from "./procfs.ts";

/** One entry; both words as they are in memory. */
export interface AuxvEntry {
  readonly key: bigint;
  readonly value: bigint;
}

/** Auxiliary vector of a process, AT_NULL included. Throws NO_SUCH_PROCESS, NOT_PERMITTED or SYSCALL. */
export function readAuxv(pid: number): AuxvEntry[] {
  return parseAuxv(readProcBytes(pid, "auxv"));
}

/** Like readAuxv; undefined when the process is gone. */
export function readAuxvIfAlive(pid: number): AuxvEntry[] | undefined {
  return undefinedIfGone(() => readAuxv(pid));
}

/** Parses the bytes of an auxv file; a last half pair is dropped. */
export function parseAuxv(bytes: Uint8Array): AuxvEntry[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const entries: AuxvEntry[] = [];
  for (let at = 0; at + 16 <= bytes.byteLength; at += 16) {
    entries.push({ key: view.getBigUint64(at, true), value: view.getBigUint64(at + 8, true) });
  }
  return entries;
}
