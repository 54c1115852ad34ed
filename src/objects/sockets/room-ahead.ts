// What a room of sockets has to say so that its sockets can be written while the tree runs: see sockets-ahead.ts.

import type {
  InetSkEntry,
  RepriseSocketOption,
  SkOptsEntry,
} from "../../images/schema/messages.generated.ts";
import type { NetlinkList } from "../../sys/netlink.ts";
import type { OptionSource } from "../../sys/socket.ts";
import type { FilesDump, OpenFile } from "../files/file-kind.ts";
import type { SocketKind } from "./further-options.ts";
import type { SocketOptionPlace } from "./option-question.ts";
import type { SocketNamespace } from "./socket-namespace.ts";

/** A socket that has been asked. */
export interface ToldSocket extends OptionSource {
  readonly kind: SocketKind;
  readonly place: SocketNamespace;
  /** POLL… that it has of those that its room looks for. */
  readonly events: number;
  /** struct sockaddr of an internet socket, filled up with zeros. */
  readonly address: Buffer;
  /** What has been made of its options, or those of another socket of its kind that has told the same. */
  readonly made: MadeOptions;
  /** Whether another one of its kind has told the same addresses, and the same of the options that sockets do not share. */
  readonly isAlike: (other: ToldSocket) => boolean;
  /** An option that is a word, or the first word of it; undefined for one that it does not have. */
  readonly number: (level: number, name: number) => number | undefined;
}

/** What rooms make of options that thousands of sockets may share. */
export interface MadeOptions {
  opts?: SkOptsEntry;
  further?: readonly RepriseSocketOption[];
  /** An internet socket that has told the same. */
  inet?: { readonly told: ToldSocket; readonly file: OpenFile; readonly isk: InetSkEntry };
}

/** Options of which `MadeOptions` are made, and others. */
export interface RoomOptions {
  readonly shared: readonly SocketOptionPlace[];
  readonly own: readonly SocketOptionPlace[];
}

export interface SocketRoomAhead {
  /** All options that the room asks sockets of a kind for; undefined for a kind that is never written ahead. */
  options(kind: SocketKind): RoomOptions | undefined;
  /** Options that are not there, each asked for with an argument: a socket that has one of them is not steady. */
  arguments?(kind: SocketKind, place: SocketNamespace, dump: FilesDump): readonly OptionArgument[];
  /** Whether all that the room will read of a socket shows in what is asked here and in the lists, once more, when it changes. */
  isSteady(file: OpenFile, dump: FilesDump, told: ToldSocket): boolean;
  /** Reads the kernel's lists of sockets again: inodes of those of which they tell something else now, or all. */
  changed(dump: FilesDump): ReadonlySet<number> | "all";
}

export interface OptionArgument {
  readonly level: number;
  readonly name: number;
  readonly bytes: Buffer;
}

/** The inodes of those of which one list has another record than the other, or none. */
export function changedRecords(
  before: readonly NetlinkList[],
  after: readonly NetlinkList[],
  inodeAt: number,
): Set<number> {
  const old = new Map<number, Buffer>();
  for (const list of before)
    for (const body of list.bodies()) old.set(body.readUInt32LE(inodeAt), body);
  const changed = new Set<number>();
  for (const list of after) {
    for (const body of list.bodies()) {
      const inode = body.readUInt32LE(inodeAt);
      if (old.get(inode)?.equals(body) !== true) changed.add(inode);
      old.delete(inode);
    }
  }
  for (const inode of old.keys()) changed.add(inode);
  return changed;
}
