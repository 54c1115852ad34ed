// In a file system of a user namespace only who has ids there may make files (EOVERFLOW otherwise): the engine's thread takes those
// of the namespace's root for the time, and keeps its capabilities. See user_namespaces(7), credentials(7), PR_SET_SECUREBITS(2).

import type { UsernsEntry } from "../../images/schema/messages.generated.ts";
import { idOutside } from "../namespaces/user.ts";
import { syscall } from "../../sys/ffi.ts";

const PR_GET_SECUREBITS = 27;
const PR_SET_SECUREBITS = 28;
const SECBIT_NO_SETUID_FIXUP: number = 1 << 2;

/** Runs `action`, which must not be asynchronous, as the root of a user namespace; as itself where there is none. */
export function asOwner<T>(maps: UsernsEntry | undefined, action: () => T): T {
  if (maps === undefined) return action();
  const bits = syscall("prctl", PR_GET_SECUREBITS, 0, 0, 0, 0);
  syscall("prctl", PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP, 0, 0, 0);
  const gid = syscall("setfsgid", outerId(maps, "gid", 0));
  const uid = syscall("setfsuid", outerId(maps, "uid", 0));
  try {
    return action();
  } finally {
    syscall("setfsuid", uid);
    syscall("setfsgid", gid);
    syscall("prctl", PR_SET_SECUREBITS, bits, 0, 0, 0);
  }
}

/** An id of a user namespace as outside has it; the first that is mapped where it is none. */
export function outerId(maps: UsernsEntry, kind: "uid" | "gid", inner: number): number {
  const map = kind === "uid" ? maps.uid_map : maps.gid_map;
  return idOutside(map, inner) ?? map[0]?.lower_first ?? 0;
}
