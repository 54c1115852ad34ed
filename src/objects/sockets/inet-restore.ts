// Internet sockets at restore. The root task only makes them, in their network namespaces; everything else the engine does on
// its own copies of their descriptors, without a stop: addresses, unread datagrams, listening, connections, options. TCP
// connections stay in repair mode until the tasks are let go, so that a restore that fails ends them in silence.

import { assert, RepriseError } from "../../errors.ts";
import type { FileEntry, InetSkEntry } from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { F_SETFL, O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import * as inet from "../../sys/abi/inet.ts";
import * as so from "../../sys/abi/socket.ts";
import { EADDRINUSE, EINPROGRESS, ENOTCONN, errnoName } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { setNumber } from "../../sys/socket.ts";
import { runHere } from "../../tracee/local.ts";
import { Program, type Argument } from "../../tracee/program.ts";
import type { EngineCopies, FilesRestore } from "../files/file-kind.ts";
import { restoreOwner } from "../files/owner.ts";
import {
  addressBytes,
  endpoint,
  isAny,
  sockaddr,
  unmapped,
  type SocketAddress,
} from "./inet-address.ts";
import { setEarlyOptions, setOptions } from "./inet-options.ts";
import { PacketSender } from "./ip-packet.ts";
import { interfaceIndex, joinGroup } from "./multicast.ts";
import { inSocketNamespace } from "./socket-namespace.ts";
import { hasUsualBuffers, restoreOptions, setOption } from "./socket-options.ts";
import { giveSocket } from "./socket-users.ts";
import { Connection, type SavedConnection } from "./tcp-restore.ts";
import { setKey } from "./tcp-signatures.ts";
import { refillDatagrams } from "./udp-queue.ts";

/** Adds the calls that make a socket, and no more. */
export function openInet(program: Program, file: FileEntry, restore: FilesRestore): Argument {
  const { id, isk } = file;
  assert(isk !== undefined, `file ${id} is no internet socket`);
  if (isPlain(isk))
    return inSocketNamespace(program, { id: isk.ns_id, restore }, () => makePlain(program, isk));
  let sockets = known.get(restore);
  if (sockets === undefined) {
    const fresh = new InetSockets(restore);
    known.set(restore, (sockets = fresh));
    restore.inEngine((copies) => fresh.finish(copies));
    restore.atEnd({ release: () => fresh.release() });
  }
  sockets.add(isk);
  return inSocketNamespace(program, { id: isk.ns_id, restore }, () => makeSocket(program, isk));
}

const known = new WeakMap<FilesRestore, InetSockets>();

/** A UDP socket without addresses that is like a fresh one but for its flags, time to live, and a priority that anybody may set. */
function isPlain(isk: InetSkEntry): boolean {
  const { opts, ip_opts: ip = {}, fown } = isk;
  return (
    isk.family === so.AF_INET &&
    isk.type === so.SOCK_DGRAM &&
    isk.proto === inet.IPPROTO_UDP &&
    !hasAddress(isk) &&
    isk.dst_port === 0 &&
    isk.dst_addr.every((word) => word === 0) &&
    (isk.shutdown ?? 0) === 0 &&
    isk.reprise === undefined &&
    isk.ifname === undefined &&
    fown.signum === 0 &&
    (opts.so_priority ?? 0) <= MOST_PRIORITY &&
    hasUsualOptions(opts) &&
    hasUsualBuffers(opts, isk) &&
    !((ip.freebind ?? false) || (ip.pktinfo ?? false) || ip.tos !== undefined) &&
    ip.raw === undefined
  );
}

/** More takes CAP_NET_ADMIN. */
const MOST_PRIORITY = 6;

/** Whether options, but for priority and buffers, are those of a fresh socket. No list of them is made: there may be thousands. */
function hasUsualOptions(opts: InetSkEntry["opts"]): boolean {
  return (
    opts.so_snd_tmo_sec === 0n &&
    opts.so_snd_tmo_usec === 0n &&
    opts.so_rcv_tmo_sec === 0n &&
    opts.so_rcv_tmo_usec === 0n &&
    opts.reuseaddr !== true &&
    opts.so_rcvlowat === 1 &&
    (opts.so_mark ?? 0) === 0 &&
    opts.so_passcred !== true &&
    opts.so_passsec !== true &&
    opts.so_dontroute !== true &&
    opts.so_no_check !== true &&
    (opts.so_bound_dev ?? "") === "" &&
    opts.so_filter.length === 0 &&
    opts.so_reuseport !== true &&
    opts.so_broadcast !== true &&
    opts.so_keepalive !== true &&
    (opts.so_oobinline ?? 0) === 0 &&
    opts.so_linger === undefined
  );
}

function makePlain(program: Program, isk: InetSkEntry): Argument {
  const flags = (isk.flags & O_NONBLOCK) | so.SOCK_CLOEXEC;
  const label = (): string => `make ${what(isk)}`;
  const fd = program.call("socket", [isk.family, isk.type | flags, isk.proto], { label });
  const socket = { fd, what: what(isk) };
  const [ttl, priority] = [isk.ip_opts?.ttl, isk.opts.so_priority ?? 0];
  const option = { level: inet.SOL_IP, name: inet.IP_TTL, option: "IP_TTL" };
  if (ttl !== undefined) setOption(program, socket, { ...option, value: ttl });
  if (priority !== 0)
    setOption(program, socket, { name: so.SO_PRIORITY, value: priority, option: "SO_PRIORITY" });
  return fd;
}

/** All are non-blocking while the engine works on them. */
function makeSocket(program: Program, isk: InetSkEntry): Argument {
  const proto = isk.reprise?.mptcp === true ? inet.IPPROTO_MPTCP : isk.proto;
  const isPing = isk.type === so.SOCK_DGRAM && PING.includes(proto);
  const fd = program.call(
    "socket",
    [isk.family, isk.type | so.SOCK_NONBLOCK | so.SOCK_CLOEXEC, proto],
    {
      label: `make ${what(isk)}`,
      ...(isPing
        ? { hint: "The range of groups in net.ipv4.ping_group_range must have group 0 in it." }
        : {}),
      ...(proto === inet.IPPROTO_MPTCP
        ? { hint: "Multipath TCP must be allowed: net.mptcp.enabled." }
        : {}),
    },
  );
  restoreOwner(program, isk.fown, fd);
  const { uid, gid } = isk.reprise ?? {};
  if (uid !== undefined && gid !== undefined) giveSocket(program, fd, { uid, gid });
  return fd;
}

const PING: readonly number[] = [inet.IPPROTO_ICMP, inet.IPPROTO_ICMPV6];

interface Made {
  readonly fd: number;
  readonly isk: InetSkEntry;
}

/** The internet sockets of a restore. */
class InetSockets {
  readonly #restore: FilesRestore;
  readonly #entries: InetSkEntry[] = [];
  readonly #saved = new Map<number, SavedConnection>();
  readonly #connections: Connection[] = [];

  constructor(restore: FilesRestore) {
    this.#restore = restore;
  }

  /** @throws RepriseError UNSUPPORTED for a connection without leave, IMAGE_MISSING, BAD_IMAGE */
  add(isk: InetSkEntry): void {
    this.#entries.push(isk);
    if (!isConnection(isk) || this.#closes) return;
    if (isk.state !== inet.TCP_CLOSE && this.#restore.options.tcp?.established !== true) {
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot restore ${what(isk)}: a TCP connection to ${textOf(remoteOf(isk))}`,
        { hint: "Use --tcp-established to restore connections, or --tcp-close to close them." },
      );
    }
    this.#saved.set(isk.id, this.#read(isk));
  }

  /** What was saved with --tcp-close has no inside. */
  get #closes(): boolean {
    const { options, set } = this.#restore;
    return options.tcp?.close === true || set.inventory.tcp_close === true;
  }

  #read(isk: InetSkEntry): SavedConnection {
    const { reader } = this.#restore.set;
    const [image] = reader.readWithPayload("tcp-stream", isk.ino);
    if (image === undefined) throw reader.missing("tcp-stream", isk.ino);
    using file = reader.openRaw("tcp-stream", isk.ino);
    const [received, written] = image.payload.map(({ offset, length }) =>
      Uint8Array.from(file.bytes(offset, length)),
    );
    return {
      entry: isk,
      stream: image.value,
      received: received ?? new Uint8Array(0),
      written: written ?? new Uint8Array(0),
      local: localOf(isk),
      remote: remoteOf(isk),
    };
  }

  /** Does everything but let connections go on. Addresses come first: who listens keeps others from binding. */
  finish(copies: EngineCopies): void {
    const made = this.#entries.map((isk) => ({ fd: copies.file(isk.id), isk }));
    const others = made.filter(({ isk }) => !isConnection(isk));
    const sender = new PacketSender();
    try {
      const ports = countPorts(this.#entries);
      for (const one of made) prepare(one, ports.get(portKey(one.isk)));
      for (const one of others) if (hasAddress(one.isk)) bind(one);
      for (const one of others) this.#refill(one, ports, sender);
      for (const { fd, isk } of others) {
        for (const membership of isk.reprise?.memberships ?? []) joinGroup(fd, isk.id, membership);
      }
      for (const { fd, isk } of others) if (isk.state === inet.TCP_LISTEN) listen(fd, isk);
      for (const one of others) if (!isStream(one.isk)) connect(one);
      for (const { fd, isk } of made) {
        const saved = this.#saved.get(isk.id);
        if (saved === undefined) continue;
        const connection = new Connection(fd, saved, sender);
        connection.restore();
        this.#connections.push(connection);
      }
      setAllOptions(made);
      for (const { fd, isk } of made) {
        shutDown(fd, isk, this.#closes && isConnection(isk));
        restoreReuse(fd, isk, ports.get(portKey(isk)));
        syscall("fcntl", fd, F_SETFL, isk.flags & O_NONBLOCK);
      }
    } finally {
      sender.close();
    }
  }

  /** Ends repair mode. */
  release(): void {
    for (const connection of this.#connections) connection.resume();
  }

  #refill({ fd, isk }: Made, ports: ReadonlyMap<string, Port>, sender: PacketSender): void {
    if ((isk.reprise?.datagrams.length ?? 0) === 0) return;
    const shared = (ports.get(portKey(isk))?.sockets ?? 0) > 1;
    refillDatagrams(fd, { entry: isk, local: localOf(isk), shared }, sender);
  }
}

function isStream({ type, proto }: InetSkEntry): boolean {
  return type === so.SOCK_STREAM && proto === inet.IPPROTO_TCP;
}

function isConnection(isk: InetSkEntry): boolean {
  return isStream(isk) && isk.dst_port !== 0;
}

function portKey({ proto, src_port }: InetSkEntry): string {
  return `${proto}:${src_port}`;
}

/** Who has a port. */
interface Port {
  readonly sockets: number;
  /** One of them has SO_REUSEPORT. */
  readonly reuse: boolean;
}

function countPorts(entries: readonly InetSkEntry[]): Map<string, Port> {
  const ports = new Map<string, Port>();
  for (const isk of entries) {
    const { sockets, reuse } = ports.get(portKey(isk)) ?? { sockets: 0, reuse: false };
    ports.set(portKey(isk), {
      sockets: sockets + 1,
      reuse: reuse || isk.opts.so_reuseport === true,
    });
  }
  return ports;
}

/**
 * What must be set before a socket gets its address. Those that had one address together could have it by these, but the program
 * may have taken them back since.
 */
function prepare({ fd, isk }: Made, port: Port | undefined): void {
  const on = (name: number): void => setNumber(fd, { level: so.SOL_SOCKET, name, value: 1 });
  if (hasAddress(isk)) on(so.SO_REUSEADDR);
  if (port?.reuse === true) on(so.SO_REUSEPORT);
  setEarlyOptions(fd, isk);
  for (const key of isk.reprise?.signature_keys ?? []) {
    const result = setKey(fd, key, { socketFamily: isk.family });
    if (result < 0)
      throw failure(isk, "set a key that signs its segments", "setsockopt", -result, KEY_HINT);
  }
}

const KEY_HINT =
  "The kernel must know TCP_MD5SIG, and net.core.optmem_max leave room for all keys.";

function hasAddress(isk: InetSkEntry): boolean {
  return isk.src_port !== 0 || !isAny(localOf(isk));
}

function bind({ fd, isk }: Made): void {
  const scope = isk.ifname === undefined ? 0 : interfaceIndex(fd, isk.ifname);
  const local = localOf(isk, Math.max(scope, 0));
  const address = sockaddr(local);
  const result = trySyscall("bind", fd, address, address.length);
  if (result >= 0) return;
  if (result === -EADDRINUSE && PING.includes(isk.proto) && isk.type === so.SOCK_DGRAM) {
    log.warn(`${what(isk)}: its ident ${isk.src_port} is in use: it gets another one`);
    return;
  }
  throw failure(isk, `bind to ${textOf(local)}`, "bind", -result, ADDRESS_HINT);
}

const ADDRESS_HINT =
  "The address must exist on this machine (ip address), and nobody else may use the port.";

function listen(fd: number, isk: InetSkEntry): void {
  const result = trySyscall("listen", fd, isk.backlog);
  if (result < 0)
    throw failure(isk, `listen on ${textOf(localOf(isk))}`, "listen", -result, ADDRESS_HINT);
}

/** UDP, ping and raw sockets keep an address; nothing is sent. */
function connect({ fd, isk }: Made): void {
  const remote = remoteOf(isk);
  if (remote.port === 0 && isAny(remote)) return;
  const address = sockaddr(remote);
  const result = trySyscall("connect", fd, address, address.length);
  if (result >= 0 || result === -EINPROGRESS) return;
  throw failure(
    isk,
    `connect to ${textOf(remote)}`,
    "connect",
    -result,
    "The network must know a way there (ip route).",
  );
}

function setAllOptions(made: readonly Made[]): void {
  const program = new Program();
  for (const { fd, isk } of made) {
    const lenient = isk.reprise?.mptcp === true;
    const hasBuffers = isk.type === so.SOCK_DGRAM && hasUsualBuffers(isk.opts, isk);
    restoreOptions(program, isk.opts, { fd, what: what(isk), lenient, hasBuffers });
  }
  if (program.length > 0) runHere(program);
  for (const { fd, isk } of made) setOptions(fd, isk);
}

/** A connection that is to be closed is shut down in both directions; `shutdown` counts the bits from 1. */
function shutDown(fd: number, isk: InetSkEntry, closes: boolean): void {
  const how = closes ? so.SHUT_RDWR : (isk.shutdown ?? 0) - 1;
  if (how < 0) return;
  // A connection's side for writing was ended by its FIN.
  if (!closes && isConnection(isk) && how === so.SHUT_WR) return;
  const result = trySyscall("shutdown", fd, !closes && isConnection(isk) ? so.SHUT_RD : how);
  // What is not connected is shut down all the same.
  if (result < 0 && result !== -ENOTCONN)
    throw failure(isk, "shut it down", "shutdown", -result, "");
}

function restoreReuse(fd: number, isk: InetSkEntry, port: Port | undefined): void {
  const set = (name: number, value: number): void =>
    setNumber(fd, { level: so.SOL_SOCKET, name, value });
  const { reuseaddr, so_reuseport } = isk.opts;
  // One without an address has neither yet.
  const isOn = hasAddress(isk);
  if ((reuseaddr === true) !== isOn) set(so.SO_REUSEADDR, isOn ? 0 : 1);
  const isShared = port?.reuse === true;
  if ((so_reuseport === true) !== isShared) set(so.SO_REUSEPORT, isShared ? 0 : 1);
}

function localOf({ family, src_addr, src_port }: InetSkEntry, scope = 0): SocketAddress {
  return { family, port: src_port, bytes: addressBytes(family, src_addr), scope };
}

function remoteOf({ family, dst_addr, dst_port, reprise }: InetSkEntry): SocketAddress {
  const scope = reprise?.scope_id ?? 0;
  return { family, port: dst_port, bytes: addressBytes(family, dst_addr), scope };
}

function textOf(address: SocketAddress): string {
  const { address: text, port } = endpoint(unmapped(address));
  return `${text} port ${port}`;
}

function what({ ino, id }: InetSkEntry): string {
  return `internet socket ${ino} (file ${id})`;
}

function failure(
  isk: InetSkEntry,
  doing: string,
  call: "bind" | "listen" | "connect" | "shutdown" | "setsockopt",
  errno: number,
  hint: string,
): RepriseError {
  const name = errnoName(errno);
  return new RepriseError(
    "SYSCALL",
    `cannot restore ${what(isk)}: cannot ${doing}: ${call}: ${name}`,
    {
      syscall: call,
      errno: name,
      ...(hint === "" ? {} : { hint }),
    },
  );
}
