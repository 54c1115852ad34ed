// The network namespaces of a tree, which the engine reaches by open descriptors of /proc/PID/ns/net. See
// network_namespaces(7).

import { openSync, readlinkSync } from "node:fs";
import { parseNamespaceLink } from "../../proc/ns.ts";
import { externalKey } from "../namespaces/kinds.ts";
import type { FrozenTask } from "../task/task.ts";
import type { NetworkLockScope } from "./lock.ts";

/** One open descriptor for every network namespace of the tasks that is not the engine's. `external`: `--external` words. */
export function openNetNamespaces(
  tasks: readonly FrozenTask[],
  external: readonly string[],
): NetworkLockScope {
  const seen = new Set([readlinkSync("/proc/self/ns/net")]);
  const namespaces: number[] = [];
  let shared: number | undefined;
  for (const { pid, state } of tasks) {
    if (state === "zombie") continue;
    const path = `/proc/${pid}/ns/net`;
    const link = readlinkSync(path);
    if (seen.has(link)) continue;
    seen.add(link);
    const inode = parseNamespaceLink(link) ?? 0;
    if (externalKey(external, "net", inode) === undefined) namespaces.push(openSync(path, "r"));
    // Strangers of further tasks go on as if nothing was.
    else if (pid === tasks[0]?.pid) shared = openSync(path, "r");
  }
  return { namespaces, shared };
}
