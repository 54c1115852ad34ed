// Cgroup namespaces, see cgroup_namespaces(7). What one holds is the cgroups in which the task that made it was at that time: those stand
// with the cgroups (cgns_prefix in cgroup.img), and the namespace is made when the root task is in them (engine/enter-cgroups.ts).

import type { NamespaceRoom } from "./room.ts";

export const cgroupRoom: NamespaceRoom = {
  kind: "cgroup",
  write: () => undefined,
  restore: () => undefined,
};
