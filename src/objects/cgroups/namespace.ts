// The cgroup namespace of a task, in which /proc/PID/cgroup shows paths from its root on; see cgroup_namespaces(7).

import { closeSync, openSync } from "node:fs";
import { CLONE_NEWCGROUP } from "../../sys/abi/sched.ts";
import { syscall } from "../../sys/ffi.ts";

/** Runs a look from inside the cgroup namespace of a task: the engine's own thread enters it for the while (setns(2)). */
export function insideCgroupNamespace<T>(pid: number, look: () => T): T {
  const own = openSync("/proc/self/ns/cgroup", "r");
  try {
    const other = openSync(`/proc/${pid}/ns/cgroup`, "r");
    try {
      syscall("setns", other, CLONE_NEWCGROUP);
    } finally {
      closeSync(other);
    }
    try {
      return look();
    } finally {
      syscall("setns", own, CLONE_NEWCGROUP);
    }
  } finally {
    closeSync(own);
  }
}
