// Pid namespaces, see pid_namespaces(7). There is nothing in one but the tasks, whose numbers in the images are those that they
// have in it. The namespace is made together with the root task, which is its init; where the root was another task, the engine
// puts an init of its own beside it (grow-root.ts). pidns-ID.img is there for external ones alone.

import type { NamespaceRoom } from "./room.ts";

export const pidRoom: NamespaceRoom = {
  kind: "pid",
  write: () => undefined,
  restore: () => undefined,
};
