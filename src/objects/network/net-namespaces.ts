// The network namespaces of a tree, which the engine reaches by open descriptors of /proc/PID/ns/net. See
// network_namespaces(7).

import { openSync, readlinkSync } from "node:fs";
import type { FrozenTask } from "../task/task.ts";

/** One open descriptor for every network namespace of the tasks that is not the engine's. */
export function openOwnNetNamespaces(tasks: readonly FrozenTask[]): number[] {
  const seen = new Set([readlinkSync("/proc/self/ns/net")]);
  const opened: number[] = [];
  for (const { pid, state } of tasks) {
    if (state === "zombie") continue;
    const path = `/proc/${pid}/ns/net`;
    const namespace = readlinkSync(path);
    if (seen.has(namespace)) continue;
    seen.add(namespace);
    opened.push(openSync(path, "r"));
  }
  return opened;
}
