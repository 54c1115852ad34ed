// Internet sockets at dump: TCP, UDP, UDP-Lite, ping and raw sockets of IPv4 and IPv6; addresses, options, and what only the
// kernel's diagnosis tells of datagram sockets. The inside of TCP connections is read later (tcp-connections.ts). See ip(7), tcp(7),
// udp(7); format.md section 11, INETSK. How they are made again: inet-restore.ts.

import { RepriseError } from "../../errors.ts";
import {
  FdTypes,
  type FileEntry,
  type RepriseInetEntry,
  type RepriseMembership,
  type RepriseSignatureKey,
  type RepriseSocketOption,
} from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { listInetSockets, parseInetSockets, type InetSocket } from "../../proc/sock-diag.ts";
import { O_CLOEXEC, S_IFMT, S_IFSOCK } from "../../sys/abi/fcntl.ts";
import * as inet from "../../sys/abi/inet.ts";
import * as so from "../../sys/abi/socket.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { NetlinkList } from "../../sys/netlink.ts";
import { getNumber, getOption } from "../../sys/socket.ts";
import type { FileKind, FilesDump, OpenFile, TcpDumpOptions } from "../files/file-kind.ts";
import { readOwner } from "../files/owner.ts";
import {
  addressWords,
  anyAddress,
  endpoint,
  isAny,
  readLocal,
  readRemote,
  type SocketAddress,
} from "./inet-address.ts";
import type { SocketOptionPlace } from "./option-question.ts";
import { OptionReader, type SocketKind } from "./further-options.ts";
import { isSticky, otherOptions, readIpOptions, readTcpOptions } from "./inet-options.ts";
import { openInet } from "./inet-restore.ts";
import { membershipQuestions, readGroups, readMemberships, type Group } from "./multicast.ts";
import { askedOnce, COLLECTED, familyOf, placesOf } from "./socket-answers.ts";
import { eventsOf, toldOf } from "./told.ts";
import { changedRecords, type SocketRoomAhead } from "./room-ahead.ts";
import { collectOptions } from "./socket-options.ts";
import { refusedSocket, socketName } from "./socket-refusal.ts";
import { saveConnectionLater, type InetDraft } from "./tcp-connections.ts";
import { socketNamespace, type SocketNamespace } from "./socket-namespace.ts";
import { readSocketUser } from "./socket-users.ts";
import { optionMemory, readKeys } from "./tcp-signatures.ts";
import { readTcpInfo, type TcpInfo } from "./tcp-stream.ts";
import { peekDatagrams } from "./udp-queue.ts";
import { POLLHUP, POLLRDHUP } from "../../sys/abi/poll.ts";

export const inetKind: FileKind = {
  name: "internet socket",
  type: FdTypes.INETSK,
  recognise: (file, dump) => {
    if ((file.stat.mode & S_IFMT) !== S_IFSOCK || !file.target.startsWith("socket:[")) return false;
    const family = familyOf(file, dump);
    return family === so.AF_INET || family === so.AF_INET6;
  },
  write: (file, id, dump) =>
    writtenBefore(file, id, dump) ??
    askedOnce(dump.borrow(file), familyOf(file, dump), () => writeInet(file, id, dump)),
  open: openInet,
};

/** A socket that is being looked at. */
interface Look {
  readonly file: OpenFile;
  readonly fd: number;
  readonly kind: SocketKind;
  readonly inode: number;
  /** Its network namespace. */
  readonly place: SocketNamespace;
  readonly options: TcpDumpOptions;
}

/** Addresses and state. */
interface State {
  readonly state: number;
  readonly local: SocketAddress;
  readonly remote: SocketAddress;
  readonly backlog: number;
  readonly shutdown: number;
}

const NO_TCP: TcpDumpOptions = { established: false, close: false, skipInFlight: false };

function writeInet(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const fd = dump.borrow(file);
  const kind = {
    family: familyOf(file, dump),
    type: getNumber(fd, so.SOL_SOCKET, so.SO_TYPE),
    proto: getNumber(fd, so.SOL_SOCKET, so.SO_PROTOCOL),
  };
  const look: Look = {
    file,
    fd,
    kind,
    inode: Number(file.stat.inode),
    place: socketNamespace(fd, dump),
    options: dump.options.tcp ?? NO_TCP,
  };
  checkKind(look);
  const sockets = socketsOf(dump);
  const state = isStream(kind) ? tcpState(look) : datagramState(look, sockets.find(look));
  const isk = entryOf(look, { id, state, sockets, dump });
  const told = toldOf(fd);
  // Of those that are in the kernel's lists these tell more.
  if (told !== undefined && isUdp(kind) && sockets.find(look) === undefined)
    told.made.inet = { told, file, isk };
  if (isStream(kind) && isk.dst_port !== 0) {
    const { local, remote } = state;
    if (look.options.close) dump.note({ tcp_close: true });
    else saveConnectionLater({ file, fd, local, remote, isk }, dump);
  }
  return { type: FdTypes.INETSK, id, isk };
}

/** One that differs from another one in nothing but its number, as thousands may. */
function writtenBefore(file: OpenFile, id: number, dump: FilesDump): FileEntry | undefined {
  const told = toldOf(dump.borrow(file));
  const before = told?.made.inet;
  if (told === undefined || before === undefined || !told.isAlike(before.told)) return undefined;
  const [{ stat, info }, other] = [file, before.file];
  if (info.flags !== other.info.flags) return undefined;
  if (stat.uid !== other.stat.uid || stat.gid !== other.stat.gid) return undefined;
  const inode = Number(stat.inode);
  if (socketsOf(dump).find({ kind: told.kind, place: told.place, inode }) !== undefined)
    return undefined;
  return { type: FdTypes.INETSK, id, isk: { ...before.isk, id, ino: inode } };
}

export const inetAhead: SocketRoomAhead = {
  options(kind) {
    // What is in a connection is read when its packets are locked out; its state is told ahead of it.
    const isTcp = isStream(kind) && kind.proto === inet.IPPROTO_TCP;
    if (!isTcp && !(isUdp(kind) && kind.proto === inet.IPPROTO_UDP)) return undefined;
    const level = isStream(kind) ? inet.SOL_UDP : inet.SOL_TCP;
    const isThere = (option: SocketOptionPlace): boolean => option.level !== level;
    const further = otherOptions(kind, { isConnection: false });
    return {
      own: placesOf(kind.family).filter(isThere),
      shared: [...COLLECTED, ...further].filter(isThere),
    };
  },
  arguments: (kind, place, dump) =>
    isStream(kind) ? [] : membershipQuestions(kind.family, socketsOf(dump).groups(place)),
  isSteady(_file, _dump, { kind, number }) {
    if (isUdp(kind)) return number(inet.SOL_UDP, inet.UDP_CORK) === 0;
    const state = number(inet.SOL_TCP, inet.TCP_INFO) ?? 0;
    return (state & 0xff) === inet.TCP_LISTEN;
  },
  changed: (dump) => known.get(dump)?.listAgain() ?? new Set(),
};

interface Found {
  readonly id: number;
  readonly state: State;
  readonly sockets: Sockets;
  readonly dump: FilesDump;
}

function entryOf(look: Look, found: Found): InetDraft {
  const { file, fd, kind, place } = look;
  const { local, remote, state, backlog, shutdown } = found.state;
  const opts = collectOptions(file, fd, { family: kind.family });
  const reprise = readPrivate(look, found, { isFiltered: opts.so_filter.length > 0 });
  return {
    id: found.id,
    ino: look.inode,
    family: kind.family,
    type: kind.type,
    // The other engine makes a plain TCP socket of one for Multipath TCP, which serves as well.
    proto: kind.proto === inet.IPPROTO_MPTCP ? inet.IPPROTO_TCP : kind.proto,
    state,
    src_port: local.port,
    dst_port: remote.port,
    flags: file.info.flags & ~O_CLOEXEC,
    backlog,
    src_addr: addressWords(local.bytes),
    dst_addr: addressWords(remote.bytes),
    fown: readOwner(file, found.dump),
    opts,
    ip_opts: readIpOptions(fd, kind),
    tcp_opts: isStream(kind) ? readTcpOptions(fd) : {},
    ...(kind.family === so.AF_INET6 ? { v6only: isOnlyV6(fd) } : {}),
    ...(local.scope === 0 ? {} : { ifname: interfaceName(fd, local.scope) }),
    ...(place.id === undefined ? {} : { ns_id: place.id }),
    ...(shutdown === 0 ? {} : { shutdown }),
    ...(reprise === undefined ? {} : { reprise }),
  };
}

function isStream({ type, proto }: SocketKind): boolean {
  return type === so.SOCK_STREAM && (proto === inet.IPPROTO_TCP || proto === inet.IPPROTO_MPTCP);
}

/** Protocols that are no concern of raw sockets. */
const PROTOCOLS: readonly number[] = [
  inet.IPPROTO_TCP,
  inet.IPPROTO_MPTCP,
  inet.IPPROTO_UDP,
  inet.IPPROTO_UDPLITE,
  inet.IPPROTO_ICMP,
  inet.IPPROTO_ICMPV6,
];
const TYPES: readonly number[] = [so.SOCK_STREAM, so.SOCK_DGRAM, so.SOCK_RAW];

function checkKind(look: Look): void {
  const { type, proto } = look.kind;
  if (type === so.SOCK_RAW) return;
  if (TYPES.includes(type) && PROTOCOLS.includes(proto)) return;
  throw refusedSocket(
    look.file,
    `an internet socket of type ${type} and protocol ${proto}`,
    "Only TCP, UDP, UDP-Lite, ping and raw sockets can be saved. Let the process close it before the dump.",
  );
}

/** State of a TCP socket, from the socket itself. */
function tcpState(look: Look): State {
  const { fd, kind } = look;
  const info = readTcpInfo(fd);
  const local = readLocal(fd) ?? anyAddress(kind.family);
  const remote = readRemote(fd, kind.family) ?? anyAddress(kind.family);
  checkTcp(look, info, remote);
  return {
    state: info.state,
    local,
    remote: info.state === inet.TCP_LISTEN ? anyAddress(kind.family) : remote,
    backlog: info.state === inet.TCP_LISTEN ? info.backlog : 0,
    shutdown: info.state === inet.TCP_LISTEN ? 0 : tcpShutdown(fd, info.state),
  };
}

const CLOSED_FOR_WRITING: readonly number[] = [
  inet.TCP_FIN_WAIT1,
  inet.TCP_FIN_WAIT2,
  inet.TCP_CLOSING,
  inet.TCP_LAST_ACK,
];

/** The kernel tells it by poll(2); a shutdown for writing shows in the state. */
function tcpShutdown(fd: number, state: number): number {
  const events = eventsOf(fd, POLLRDHUP);
  const read = (events & POLLRDHUP) === 0 ? 0 : SHUTDOWN_READ;
  if (state === inet.TCP_CLOSE) return (events & POLLHUP) === 0 ? 0 : read;
  return read | (CLOSED_FOR_WRITING.includes(state) ? SHUTDOWN_WRITE : 0);
}

const SHUTDOWN_READ = 1;
const SHUTDOWN_WRITE = 2;

function checkTcp(look: Look, info: TcpInfo, remote: SocketAddress): void {
  const { fd, kind, options } = look;
  if (info.state === inet.TCP_LISTEN) {
    if (info.waiting === 0 || options.skipInFlight) return;
    throw refusedSocket(
      look.file,
      `${info.waiting} connections wait to be accepted`,
      "Let the server accept them before the dump, or let them go with --skip-in-flight.",
    );
  }
  if (remote.port === 0) return;
  const end = endpoint(remote);
  const peer = `${end.address} port ${end.port}`;
  if (info.state !== inet.TCP_CLOSE && !options.established && !options.close) {
    throw refusedSocket(
      look.file,
      `a TCP connection to ${peer}`,
      "Use --tcp-established at dump and restore to save connections, or --tcp-close to restore them closed.",
    );
  }
  if (options.close) return;
  if (kind.proto === inet.IPPROTO_MPTCP) {
    throw refusedSocket(
      look.file,
      `a Multipath TCP connection to ${peer}`,
      "The kernel has no way to restore one. Use --tcp-close, or turn it off in the program (Go: GODEBUG=multipathtcp=0).",
    );
  }
  const above = getOption(fd, { level: inet.SOL_TCP, name: inet.TCP_ULP, size: ULP_NAME });
  if (typeof above !== "number" && above.length > 0 && above[0] !== 0) {
    const name = above.toString("latin1").replace(/\0.*$/s, "");
    throw refusedSocket(
      look.file,
      `a TCP connection to ${peer} with ${name} in the kernel`,
      "The keys of kernel TLS and the like cannot be read. Use --tcp-close.",
    );
  }
}

/** TCP_ULP_NAME_MAX. */
const ULP_NAME = 16;

/** State of a UDP, ping or raw socket: what the diagnosis has of it, else what the socket tells. */
function datagramState({ fd, kind }: Look, known: InetSocket | undefined): State {
  const local = readLocal(fd) ?? anyAddress(kind.family);
  const told = readRemote(fd, kind.family);
  const seen: SocketAddress | undefined =
    known === undefined
      ? undefined
      : { ...anyAddress(kind.family), port: known.destinationPort, bytes: known.destination };
  const remote = told ?? seen ?? anyAddress(kind.family);
  const isConnected = remote.port !== 0 || !isAny(remote);
  return {
    state: known?.state ?? (isConnected ? inet.TCP_ESTABLISHED : inet.TCP_CLOSE),
    local,
    remote,
    backlog: 0,
    shutdown: known?.shutdown ?? datagramShutdown(fd),
  };
}

/** Of a socket without a port, which the diagnosis does not list. One that is shut down for writing alone does not show it. */
function datagramShutdown(fd: number): number {
  const events = eventsOf(fd, POLLRDHUP);
  if ((events & POLLRDHUP) === 0) return 0;
  return (events & POLLHUP) === 0 ? SHUTDOWN_READ : SHUTDOWN_READ | SHUTDOWN_WRITE;
}

const NOTHING: readonly never[] = [];

/** What CRIU has no field for. */
function readPrivate(
  look: Look,
  { state, sockets, dump }: Found,
  { isFiltered }: { readonly isFiltered: boolean },
): RepriseInetEntry | undefined {
  const { file, fd, kind } = look;
  const user = readSocketUser(file, dump);
  if (kind.family === so.AF_INET6) tellFlowLabel(look);
  if (isUdp(kind)) checkCork(look);
  else if (!isStream(kind)) warnOfQueue(look);
  const mptcp = kind.proto === inet.IPPROTO_MPTCP;
  const { port, scope } = state.remote;
  const options = sockets.options(look, isStream(kind) && port !== 0);
  const datagrams = isUdp(kind) ? peekDatagrams(fd) : NOTHING;
  const memberships = isStream(kind) ? NOTHING : sockets.memberships(look);
  const keys = isStream(kind) ? signatureKeys(look, state) : NOTHING;
  if (isStream(kind) && keys.length === 0 && !isFiltered && !options.some(isSticky))
    tellHiddenOptions(look);
  const nothing =
    options.length + datagrams.length + memberships.length + keys.length + scope === 0;
  if (nothing && !mptcp && user === undefined) return undefined;
  return {
    options,
    datagrams,
    memberships,
    signature_keys: keys,
    ...(mptcp ? { mptcp } : {}),
    ...(scope === 0 ? {} : { scope_id: scope }),
    ...user,
  };
}

function signatureKeys({ fd, kind, inode, place }: Look, { local }: State): RepriseSignatureKey[] {
  if (optionMemory(fd) === 0) return [];
  return readKeys({ family: kind.family, inode, port: local.port, place });
}

/** What a socket holds and nothing shows: keys before it has an address, or of another kind, and storage of eBPF programs. */
function tellHiddenOptions({ file, fd }: Look): void {
  const bytes = optionMemory(fd);
  if (bytes === 0) return;
  log.loss(
    `${socketName(file)}: ${bytes} bytes of its options cannot be read (keys that sign segments, or the like), and are lost`,
  );
}

/** A label is leased for a while (IPV6_FLOWLABEL_MGR), mostly to one process: the kernel may not give it to another one yet. */
function tellFlowLabel({ file, fd }: Look): void {
  const address = Buffer.alloc(SOCKADDR_IN6_SIZE);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(address.length);
  if (trySyscall("getpeername", fd, address, length) < 0) return;
  const label = address.readUInt32BE(FLOWINFO_AT) & FLOW_LABEL;
  if (label !== 0)
    log.loss(`${socketName(file)}: its IPv6 flow label 0x${label.toString(16)} is lost`);
}

const SOCKADDR_IN6_SIZE = 28;
const FLOWINFO_AT = 4;
const FLOW_LABEL = 0xfffff;

function isUdp({ type, proto }: SocketKind): boolean {
  return type === so.SOCK_DGRAM && (proto === inet.IPPROTO_UDP || proto === inet.IPPROTO_UDPLITE);
}

/** What is held back by UDP_CORK cannot be seen from outside. */
function checkCork(look: Look): void {
  const { fd, kind } = look;
  const level = kind.proto === inet.IPPROTO_UDP ? inet.SOL_UDP : inet.SOL_UDPLITE;
  if (getNumber(fd, level, inet.UDP_CORK) === 0 || waiting(fd, inet.SIOCOUTQ) === 0) return;
  throw refusedSocket(
    look.file,
    "it holds back data to send (UDP_CORK)",
    "The kernel does not show that data. Let the process send it before the dump.",
  );
}

function warnOfQueue({ file, fd }: Look): void {
  if (waiting(fd, inet.SIOCINQ) === 0) return;
  log.loss(`${socketName(file)}: packets that it has not read yet are lost`);
}

function waiting(fd: number, request: number): number {
  const count = Buffer.alloc(4);
  return trySyscall("ioctl", fd, request, count) < 0 ? 0 : count.readInt32LE(0);
}

function isOnlyV6(fd: number): boolean {
  return getNumber(fd, inet.SOL_IPV6, inet.IPV6_V6ONLY) !== 0;
}

/** struct ifreq: name, index. */
const IFREQ_SIZE = 40;

function interfaceName(fd: number, index: number): string {
  const request = Buffer.alloc(IFREQ_SIZE);
  request.writeInt32LE(index, so.IFNAMSIZ);
  syscall("ioctl", fd, inet.SIOCGIFNAME, request);
  return request.toString("latin1", 0, so.IFNAMSIZ).replace(/\0.*$/s, "");
}

/** The internet sockets of one dump. */
class Sockets {
  readonly #options = new OptionReader();
  /** By namespace, family and protocol; then by inode. */
  readonly #lists = new Map<string, Listed>();
  readonly #groups = new Map<number, readonly Group[]>();
  readonly #places = new Map<number, SocketNamespace>();

  /** What the kernel's diagnosis tells of a datagram or raw socket. It lists those that have a port or protocol. */
  find({ kind, inode, place }: Pick<Look, "kind" | "inode" | "place">): InetSocket | undefined {
    const protocol = kind.type === so.SOCK_RAW ? inet.IPPROTO_RAW : kind.proto;
    const key = `${place.inode}:${kind.family}:${protocol}`;
    let listed = this.#lists.get(key);
    if (listed === undefined) {
      const read = (): NetlinkList => place.inside(() => listOf(kind.family, protocol));
      this.#lists.set(key, (listed = listedNow(read)));
    }
    return listed.sockets.get(inode);
  }

  /** Lists all once more: the inodes of those of which something else is told now. */
  listAgain(): ReadonlySet<number> | "all" {
    const places = [...this.#places.values()];
    const groups = JSON.stringify([...this.#groups.values()]);
    this.#groups.clear();
    for (const place of places) this.groups(place);
    if (JSON.stringify([...this.#groups.values()]) !== groups) return "all";
    const changed = new Set<number>();
    for (const [key, { list, read }] of this.#lists) {
      const now = listedNow(read);
      if (now.list.equals(list)) continue;
      this.#lists.set(key, now);
      for (const inode of changedRecords([list], [now.list], INET_INODE_AT)) changed.add(inode);
    }
    return changed;
  }

  groups(place: SocketNamespace): readonly Group[] {
    let groups = this.#groups.get(place.inode);
    if (groups === undefined) {
      groups = place.inside(readGroups);
      this.#groups.set(place.inode, groups);
      this.#places.set(place.inode, place);
    }
    return groups;
  }

  options({ fd, kind, place }: Look, isConnection: boolean): readonly RepriseSocketOption[] {
    return this.#options.read(fd, kind, {
      places: () => otherOptions(kind, { isConnection }),
      variant: String(isConnection),
      namespace: place,
    });
  }

  memberships({ fd, kind, place }: Look): readonly RepriseMembership[] {
    if (toldOf(fd) !== undefined) return NOTHING;
    return readMemberships(fd, kind.family, this.groups(place));
  }
}

/** What the diagnosis tells of a namespace's sockets of one family and protocol, by inode. */
interface Listed {
  readonly list: NetlinkList;
  readonly sockets: ReadonlyMap<number, InetSocket>;
  readonly read: () => NetlinkList;
}

function listedNow(read: () => NetlinkList): Listed {
  const list = read();
  return { list, read, sockets: new Map(parseInetSockets(list).map((one) => [one.inode, one])) };
}

/** Not every protocol can be diagnosed: ping sockets cannot, raw ones only with a module. */
function listOf(family: number, protocol: number): NetlinkList {
  try {
    return listInetSockets(family, protocol);
  } catch (error) {
    if (error instanceof RepriseError && error.errno === "ENOENT") return NetlinkList.empty();
    throw error;
  }
}

/** Where struct inet_diag_msg has the inode. */
const INET_INODE_AT = 68;

const known = new WeakMap<FilesDump, Sockets>();

function socketsOf(dump: FilesDump): Sockets {
  let sockets = known.get(dump);
  if (sockets === undefined) known.set(dump, (sockets = new Sockets()));
  return sockets;
}
