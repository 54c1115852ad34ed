// Users of sockets. A socket belongs to who made it (socket(2), accept(2): fstat(2) shows it, and packet filters and SO_REUSEPORT
// heed it). A connected unix socket also tells who its peer was when it called listen, connect or socketpair (SO_PEERCRED,
// unix(7)): a restored server must not take an unprivileged client for root. Ids in the images are those inside of the root
// task's user namespace. The pid that SO_PEERCRED tells is the root task's after a restore. CRIU keeps none of it.

import { LINUX_CAPABILITY_VERSION_3 } from "../../sys/abi/sched.ts";
import { SO_PEERCRED, SOL_SOCKET } from "../../sys/abi/socket.ts";
import { mayBecomeOthers } from "../../sys/process.ts";
import { getOption } from "../../sys/socket.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { FilesDump, OpenFile } from "../files/file-kind.ts";
import { collectMaps, idInside } from "../namespaces/user.ts";

export interface UserIds {
  readonly uid: number;
  readonly gid: number;
}

/** Whose a socket is; undefined for root's. */
export function readSocketUser({ stat }: OpenFile, dump: FilesDump): UserIds | undefined {
  return inside({ uid: stat.uid, gid: stat.gid }, dump);
}

/** struct ucred: pid, uid, gid. */
const UCRED_SIZE = 12;
/** An id of nobody: there is no peer, or it is not in the namespace. */
const NO_ID = 0xffff_ffff;

/** Who a unix socket says its peer was; undefined for root, and when there was none. */
export function readPeerUser(fd: number, dump: FilesDump): UserIds | undefined {
  const value = getOption(fd, { level: SOL_SOCKET, name: SO_PEERCRED, size: UCRED_SIZE });
  if (typeof value === "number") return undefined;
  const [uid, gid] = [value.readUInt32LE(4), value.readUInt32LE(8)];
  return uid === NO_ID ? undefined : inside({ uid, gid }, dump);
}

/** Adds the call that gives a socket to its user. */
export function giveSocket(program: Program, fd: Argument, user: UserIds | undefined): void {
  if (user === undefined) return;
  program.call("fchown", [fd, user.uid, user.gid], { label: "give a socket to its user" });
}

/** Adds the calls of `step` so that their effective user is another one, with the capabilities of root. */
export function asUser<T>(program: Program, user: UserIds | undefined, step: () => T): T {
  if (user === undefined || !mayBecomeOthers()) return step();
  const label = `become user ${user.uid} for a moment`;
  const header = Buffer.alloc(8);
  header.writeUInt32LE(LINUX_CAPABILITY_VERSION_3, 0);
  const version = program.data(header);
  const sets = program.output(CAPABILITY_SETS_SIZE);
  program.call("capget", [version, sets], { label });
  program.call("setresgid", [KEEP_ID, user.gid, KEEP_ID], { label });
  program.call("setresuid", [KEEP_ID, user.uid, KEEP_ID], { label });
  // The effective ones went with the user.
  program.call("capset", [version, sets], { label });
  const result = step();
  program.call("setresuid", [KEEP_ID, 0, KEEP_ID], { label: "become root again" });
  program.call("setresgid", [KEEP_ID, 0, KEEP_ID], { label: "become root again" });
  return result;
}

/** The id 0xffffffff leaves a user or group id as it is. */
const KEEP_ID = 0xffff_ffff;
/** Two of struct __user_cap_data_struct. */
const CAPABILITY_SETS_SIZE = 24;

function inside({ uid, gid }: UserIds, dump: FilesDump): UserIds | undefined {
  const namespace = dump.namespaces?.ofRoot("user");
  if (namespace === undefined) return uid === 0 && gid === 0 ? undefined : { uid, gid };
  const maps = collectMaps(namespace.pid);
  const inner = { uid: idInside(maps.uid_map, uid), gid: idInside(maps.gid_map, gid) };
  if (inner.uid === undefined || inner.gid === undefined) return undefined;
  return inner.uid === 0 && inner.gid === 0 ? undefined : { uid: inner.uid, gid: inner.gid };
}
