// Unix sockets at dump: what NETLINK_SOCK_DIAG tells of each, options, name, and what waits in its queue. See unix(7),
// net/unix/; format.md section 11, UNIXSK. How they are made again: unix-restore.ts.
//
// What is not kept: the pid that the other side sees (SO_PEERCRED: after a restore that of the root task, which makes all sockets);
// the address of a datagram's sender that is gone, when it is a path; SO_INQ, which the kernel does not tell.

import { RepriseError } from "../../errors.ts";
import {
  FdTypes,
  type FileEntry,
  type UnixSkEntry,
} from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { listUnixSockets, parseUnixSockets, type UnixSocket } from "../../proc/sock-diag.ts";
import type { NetlinkList } from "../../sys/netlink.ts";
import { socketNamespace, type SocketNamespace } from "./socket-namespace.ts";
import { O_CLOEXEC, S_IFMT, S_IFSOCK } from "../../sys/abi/fcntl.ts";
import * as so from "../../sys/abi/socket.ts";
import type { FileKind, FilesDump, OpenFile } from "../files/file-kind.ts";
import { NO_OWNER, readOwner } from "../files/owner.ts";
import { optionReader, socketOptions } from "./further-options.ts";
import { askedOnce, COLLECTED, familyOf, placesOf } from "./socket-answers.ts";
import { changedRecords, type SocketRoomAhead } from "./room-ahead.ts";
import { collectOptions, NO_OPTIONS } from "./socket-options.ts";
import { toldOf } from "./told.ts";
import { collectName, lookAtName, showName } from "./unix-name.ts";
import { hasError, peekQueue } from "./unix-queue.ts";
import { readPeerUser, readSocketUser } from "./socket-users.ts";
import { openUnix, settleInFlight } from "./unix-restore.ts";

export const unixKind: FileKind = {
  name: "unix socket",
  type: FdTypes.UNIXSK,
  recognise: (file, dump) =>
    (file.stat.mode & S_IFMT) === S_IFSOCK &&
    file.target.startsWith("socket:[") &&
    familyOf(file, dump) === so.AF_UNIX,
  write: (file, id, dump) =>
    askedOnce(dump.borrow(file), so.AF_UNIX, () => writeUnix(file, id, dump)),
  open: openUnix,
  settle: settleInFlight,
  inheritKeys: ({ usk }) => [`socket:[${usk?.ino}]`],
};

/** Where struct unix_diag_msg has the inode. */
const UNIX_INODE_AT = 4;

/** uflags: its peer was the engine, of whom its owner asked for the dump. It is saved as a closed one. */
const USK_SERVICE = 2;
/** uflags: a socket outside of the tree that one of it is connected to. */
const USK_EXTERN = 1;

interface Seen {
  readonly file: OpenFile;
  readonly fd: number;
  readonly socket: UnixSocket;
  readonly entry: UnixSkEntry;
}

/** The unix sockets of one dump. */
interface Sockets {
  /** All of the network namespaces that have been listed, by inode. */
  readonly all: Map<number, UnixSocket>;
  /** Listener by the inode of a client that it has not accepted yet. */
  readonly waitsAt: Map<number, UnixSocket>;
  readonly listed: Map<SocketNamespace, NetlinkList>;
  /** Those of the tree, by inode. */
  readonly seen: Map<number, Seen>;
  /** Sockets whose name is a path and that were written ahead: where it leads, one of them, and all. */
  readonly names: Map<string, { readonly fd: number; readonly inodes: number[] }>;
}

function writeUnix(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const fd = dump.borrow(file);
  const namespace = socketNamespace(fd, dump);
  const sockets = socketsOf(dump, namespace);
  const socket = sockets.all.get(Number(file.stat.inode));
  if (socket === undefined) {
    throw refusal(file, "the kernel does not list this socket (NETLINK_SOCK_DIAG)", {
      hint: "It may just be closing: try again.",
    });
  }
  const asks = socket.peer !== undefined && socket.peer === dump.options.requestSocket;
  const peer = asks ? { inode: 0 } : findPeer(file, socket, sockets);
  const entry: UnixSkEntry = {
    id,
    ino: socket.inode,
    type: socket.type,
    state: asks ? so.TCP_CLOSE : socket.state,
    flags: file.info.flags & ~O_CLOEXEC,
    uflags: asks ? USK_SERVICE : 0,
    backlog: "place" in peer ? (peer.place ?? socket.sendQueue) : socket.sendQueue,
    peer: peer.inode,
    fown: readOwner(file, dump),
    opts: collectOptions(file, fd, { family: so.AF_UNIX }),
    ...collectName(file, { fd, name: socket.name }, dump),
    ...(socket.shutdown === 0 ? {} : { shutdown: socket.shutdown }),
    ...readPrivate(file, { fd, socket, namespace }, dump),
    ...(namespace.id === undefined ? {} : { ns_id: namespace.id }),
  };
  const seen = { file, fd, socket, entry };
  sockets.seen.set(socket.inode, seen);
  // Nothing waits in one that is written ahead; else it is written again when the tree stands still.
  if (hasQueue(socket) && !asks && toldOf(fd) === undefined) {
    dump.afterTasks(() => writeQueue(seen, dump));
  }
  return { type: FdTypes.UNIXSK, id, usk: entry };
}

/** Users other than root, and options, that CRIU has no field for. */
function readPrivate(
  file: OpenFile,
  one: {
    readonly fd: number;
    readonly socket: UnixSocket;
    readonly namespace: SocketNamespace;
  },
  dump: FilesDump,
): Pick<UnixSkEntry, "reprise"> {
  const { fd, socket, namespace } = one;
  const user = readSocketUser(file, dump);
  const peer = readPeerUser(fd, dump);
  const kind = { family: so.AF_UNIX, type: socket.type, proto: 0 };
  const options = optionReader(dump).read(fd, kind, { places: socketOptions, namespace });
  // The inode of a datagram socket that is closed is told as 0.
  const gone = socket.type === so.SOCK_DGRAM && socket.peer === 0 ? { peer_gone: true } : {};
  const reset = hasError(fd) ? { reset: true } : {};
  const told = peer === undefined ? {} : { peer_uid: peer.uid, peer_gid: peer.gid };
  const all = { ...user, ...told, ...gone, ...reset };
  if (Object.keys(all).length === 0 && options.length === 0) return {};
  return { reprise: { ...all, options } };
}

const known = new WeakMap<FilesDump, Sockets>();

function socketsOf(dump: FilesDump, namespace: SocketNamespace): Sockets {
  let sockets = known.get(dump);
  if (sockets === undefined) {
    const fresh: Sockets = {
      all: new Map(),
      waitsAt: new Map(),
      listed: new Map(),
      seen: new Map(),
      names: new Map(),
    };
    known.set(dump, (sockets = fresh));
    dump.later(() => checkPeers(fresh, dump));
  }
  if (sockets.listed.has(namespace)) return sockets;
  addList(sockets, namespace, namespace.inside(listUnixSockets));
  return sockets;
}

function addList(sockets: Sockets, namespace: SocketNamespace, list: NetlinkList): void {
  sockets.listed.set(namespace, list);
  for (const socket of parseUnixSockets(list)) {
    sockets.all.set(socket.inode, socket);
    for (const inode of socket.waiting) if (inode !== 0) sockets.waitsAt.set(inode, socket);
  }
}

export const unixAhead: SocketRoomAhead = {
  options: () => ({ own: placesOf(so.AF_UNIX), shared: [...COLLECTED, ...socketOptions()] }),
  // A client that waits to be accepted is told by its listener.
  isSteady(file, dump, { place }) {
    const sockets = socketsOf(dump, place);
    const socket = sockets.all.get(Number(file.stat.inode));
    if (socket === undefined) return false;
    const isConnection = socket.type !== so.SOCK_DGRAM && socket.state === so.TCP_ESTABLISHED;
    const isSteady =
      (socket.peer ?? 0) === 0 ? !isConnection : socket.peer !== dump.options.requestSocket;
    return isSteady && (socket.file === undefined || noteName(sockets, socket, dump.borrow(file)));
  },
  changed(dump) {
    const sockets = known.get(dump);
    if (sockets === undefined) return new Set();
    const changed = new Set<number>();
    for (const [seen, { fd, inodes }] of sockets.names)
      if (lookAtName(fd) !== seen) for (const inode of inodes) changed.add(inode);
    const before = [...sockets.listed];
    const lists = before.map(([namespace]) => namespace.inside(listUnixSockets));
    if (before.every(([, list], index) => lists[index]?.equals(list) === true)) return changed;
    sockets.all.clear();
    sockets.waitsAt.clear();
    before.forEach(([namespace], index) =>
      addList(sockets, namespace, lists[index] as NetlinkList),
    );
    const others = changedRecords(
      before.map(([, list]) => list),
      lists,
      UNIX_INODE_AT,
    );
    for (const inode of others) changed.add(inode);
    return changed;
  },
};

/** Notes where the path of a socket leads. The connections of one listener lead to one file: once is enough to look again. */
function noteName({ names }: Sockets, { name, inode }: UnixSocket, fd: number): boolean {
  // A relative one is found from a directory of its owner.
  const seen = name[0] === SLASH ? lookAtName(fd) : undefined;
  if (seen === undefined) return false;
  const alike = names.get(seen);
  if (alike === undefined) names.set(seen, { fd, inodes: [inode] });
  else alike.inodes.push(inode);
  return true;
}

const SLASH = 0x2f;

interface Peer {
  readonly inode: number;
  /** Of a client that waits to be accepted: how many wait before it. Restores connect in this order. */
  readonly place?: number;
}

/** The peer as the images know it: the listener, for a client that is not accepted yet. */
function findPeer(file: OpenFile, socket: UnixSocket, { waitsAt }: Sockets): Peer {
  const inode = socket.peer ?? 0;
  if (inode !== 0 || socket.type === so.SOCK_DGRAM || socket.state !== so.TCP_ESTABLISHED) {
    return { inode };
  }
  const listener = waitsAt.get(socket.inode);
  if (listener === undefined) {
    // Closed by the peer.
    if (socket.shutdown === BOTH) return { inode: 0 };
    throw refusal(file, "a connection whose other end cannot be found", {
      hint: "It may just be closing: try again.",
    });
  }
  if (socket.sendQueue !== 0) {
    throw refusal(file, "it has sent data into a connection that is not accepted yet", {
      hint: "What it sent cannot be seen from outside. Let the server accept it before the dump.",
    });
  }
  return { inode: listener.inode, place: listener.waiting.indexOf(socket.inode) };
}

const BOTH = 3;

function hasQueue({ type, state }: UnixSocket): boolean {
  return type === so.SOCK_DGRAM || state === so.TCP_ESTABLISHED;
}

interface QueueImage {
  add(packet: {
    readonly id_for: number;
    readonly length: number;
    readonly scm: readonly { readonly type: number; readonly rights: readonly number[] }[];
    readonly sender?: Uint8Array;
  }): void;
  payload(bytes: Uint8Array): void;
}

const images = new WeakMap<FilesDump, QueueImage>();

function writeQueue({ file, fd, socket, entry }: Seen, dump: FilesDump): void {
  for (const { data, rights, sender } of peekQueue(file, fd, socket)) {
    const ids = rights.map((right) => dump.describeInFlight(right, file.task));
    const scm = ids.length === 0 ? [] : [{ type: so.SCM_RIGHTS, rights: ids }];
    const image = queueImage(dump);
    const named = sender.length === 0 ? {} : { sender };
    image.add({ id_for: entry.id, length: data.length, scm, ...named });
    image.payload(data);
  }
}

/** One image for the queues of all sockets, made when the first packet is found. */
function queueImage(dump: FilesDump): QueueImage {
  let image = images.get(dump);
  if (image === undefined) {
    const opened = dump.images.open("sk-queues");
    images.set(dump, (image = opened));
    dump.later(() => opened.close());
  }
  return image;
}

/** When all sockets of the tree are known: who is connected to the outside. */
function checkPeers({ all, seen }: Sockets, dump: FilesDump): void {
  const outside = new Set<number>();
  for (const one of seen.values()) {
    if (one.socket.state === so.TCP_LISTEN) checkWaiting(one, seen);
    else tellNameOfOthers(one, all, seen);
    const { peer } = one.entry;
    if (peer === 0 || seen.has(peer)) continue;
    checkOutside(one, all.get(peer), dump);
    if (!outside.has(peer)) addOutside(peer, all.get(peer), dump);
    outside.add(peer);
  }
}

/** An accepted connection has its listener's name. One of outside keeps others from having it, if only for a moment. */
function tellNameOfOthers(
  { file, socket }: Seen,
  all: ReadonlyMap<number, UnixSocket>,
  seen: ReadonlyMap<number, Seen>,
): void {
  if (socket.type === so.SOCK_DGRAM || socket.state !== so.TCP_ESTABLISHED) return;
  if (socket.name.length === 0) return;
  const listeners = listenersOf(all).get(nameKey(socket)) ?? [];
  if (listeners.length === 0 || listeners.some(({ inode }) => seen.has(inode))) return;
  log.loss(
    `${where(file)}: its name ${showName(socket.name)} is that of a listener outside of the tree: it is lost if that has it still`,
  );
}

const listenersByName = new WeakMap<object, ReadonlyMap<string, readonly UnixSocket[]>>();

/** Built once, when all sockets have been listed. */
function listenersOf(
  all: ReadonlyMap<number, UnixSocket>,
): ReadonlyMap<string, readonly UnixSocket[]> {
  const before = listenersByName.get(all);
  if (before !== undefined) return before;
  const found = new Map<string, UnixSocket[]>();
  for (const socket of all.values()) {
    if (socket.state !== so.TCP_LISTEN) continue;
    const same = found.get(nameKey(socket));
    if (same === undefined) found.set(nameKey(socket), [socket]);
    else same.push(socket);
  }
  listenersByName.set(all, found);
  return found;
}

function nameKey({ type, name }: UnixSocket): string {
  return `${type}:${name.toString("latin1")}`;
}

function checkWaiting({ file, socket }: Seen, seen: ReadonlyMap<number, Seen>): void {
  if (socket.waiting.includes(0)) {
    throw refusal(file, "a connection that waits to be accepted is closed at the other end", {
      hint: "What was sent in it cannot be seen from outside. Let the server accept it before the dump.",
    });
  }
  const strangers = socket.waiting.filter((inode) => !seen.has(inode)).length;
  if (strangers === 0) return;
  log.loss(
    `${where(file)}: ${strangers} connections from outside of the tree wait to be accepted: they are not restored`,
  );
}

/** A peer outside of the tree is found again by its name, and only if the caller says that it will be there. */
function checkOutside({ file, socket }: Seen, peer: UnixSocket | undefined, dump: FilesDump): void {
  const { extUnixSk = false } = dump.options;
  if (Array.isArray(extUnixSk) && extUnixSk.includes(socket.inode)) return;
  if (socket.type !== so.SOCK_DGRAM) {
    throw refusal(file, `half of a stream connection: its peer is outside of the tree`, {
      hint: "Connections cannot be cut in two. Dump the other process too, or close the connection first.",
    });
  }
  const name = showName(peer?.name ?? new Uint8Array(0));
  if (extUnixSk === false) {
    throw refusal(file, `it is connected to a socket outside of the tree (${name})`, {
      hint: "Use --ext-unix-sk at dump and restore, if that socket will be there.",
    });
  }
  if ((peer?.name.length ?? 0) === 0) {
    throw refusal(file, "it is connected to a socket outside of the tree that has no name", {
      hint: "Only a socket with a name can be found again.",
    });
  }
}

/** The entry of an outer socket has its name alone. */
function addOutside(ino: number, peer: UnixSocket | undefined, dump: FilesDump): void {
  const make = (id: number): UnixSkEntry => ({
    id,
    ino,
    type: so.SOCK_DGRAM,
    state: so.TCP_LISTEN,
    flags: 0,
    uflags: USK_EXTERN,
    backlog: 0,
    peer: 0,
    fown: NO_OWNER,
    opts: NO_OPTIONS,
    name: peer?.name ?? new Uint8Array(0),
  });
  dump.addEntry((id) => ({ type: FdTypes.UNIXSK, id, usk: make(id) }));
}

function where({ task, fd, target }: OpenFile): string {
  return `fd ${fd} of pid ${task.pid} (${target})`;
}

function refusal(file: OpenFile, why: string, more: { readonly hint: string }): RepriseError {
  return new RepriseError("UNSUPPORTED", `cannot dump ${where(file)}: ${why}`, {
    pid: file.task.pid,
    fd: file.fd,
    ...more,
  });
}
