// The rooms of namespaces, in the order in which they are filled at restore: what needs the devices and files of outside comes
// before the mounts.

import { netRoom } from "../network/room.ts";
import { cgroupRoom } from "./cgroup.ts";
import { ipcRoom } from "./ipc.ts";
import type { NamespaceKind } from "./kinds.ts";
import { pidRoom } from "./pid.ts";
import { mntRoom } from "../mounts/mnt.ts";
import type { NamespaceRoom } from "./room.ts";
import { timeRoom } from "./time.ts";
import { userRoom } from "./user.ts";
import { utsRoom } from "./uts.ts";

export const NAMESPACE_ROOMS: readonly NamespaceRoom[] = [
  userRoom,
  timeRoom,
  pidRoom,
  utsRoom,
  ipcRoom,
  netRoom,
  cgroupRoom,
  mntRoom,
];

/** Whether namespaces of a kind can be saved. */
export function hasRoom(kind: NamespaceKind): boolean {
  return NAMESPACE_ROOMS.some((room) => room.kind === kind);
}
