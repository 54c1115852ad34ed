// /proc/PID/net/tcp and tcp6: the TCP sockets of a task's network namespace, a line each (net/ipv4/tcp_ipv4.c). Quickly read, and
// enough to know which connections there are.

import { readProcTextIfSupported } from "./procfs.ts";

const LISTENING = "0A";
/** Place of the state and the inode among the words of a line. */
const STATE = 3;
const INODE = 9;

/** Inodes of all connections. Throws as readProcText does. */
export function readConnectionInodes(pid: number): Set<number> {
  const inodes = new Set<number>();
  for (const name of ["net/tcp", "net/tcp6"]) {
    const lines = (readProcTextIfSupported(pid, name) ?? "").split("\n").slice(1);
    for (const line of lines) {
      const words = line.trim().split(/\s+/);
      const inode = Number(words[INODE] ?? 0);
      // Those that wait for late packets belong to nobody any more.
      if (words[STATE] !== LISTENING && inode !== 0) inodes.add(inode);
    }
  }
  return inodes;
}
