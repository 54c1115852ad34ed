// Working in another network namespace: the engine's one thread goes there by setns(2) and comes back. Sockets made there
// stay there, /proc/sys/net shows that namespace, and children started there are in it. See network_namespaces(7).

import { closeSync, openSync } from "node:fs";
import { CLONE_NEWNET } from "./abi/sched.ts";
import { syscall, syscallError, trySyscall } from "./ffi.ts";

/**
 * Runs a step in the network namespace of an open descriptor; in the engine's own if there is none.
 * @throws RepriseError SYSCALL when the namespace cannot be entered, and what the step throws.
 */
export function inNetNamespace<T>(namespace: number | undefined, step: () => T): T {
  if (namespace === undefined) return step();
  const home = openSync("/proc/thread-self/ns/net", "r");
  try {
    const entered = trySyscall("setns", namespace, CLONE_NEWNET);
    if (entered < 0) throw syscallError("setns", -entered, "enter a network namespace");
    try {
      return step();
    } finally {
      syscall("setns", home, CLONE_NEWNET);
    }
  } finally {
    closeSync(home);
  }
}
