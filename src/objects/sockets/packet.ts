// Packet sockets, which see what a device carries, see packet(7); perhaps with rings, memory that the kernel and the program
// share, which the program maps (its area has the status VMA_SOCKET and this file's id). Packets that wait are lost, as on the
// wire. format.md section 11, packet_sock_entry.

import { RepriseError } from "../../errors.ts";
import {
  FdTypes,
  type FileEntry,
  type PacketRing as RingEntry,
  type PacketSockEntry,
  type RepriseSocketOption,
} from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { readPacketSockets, type PacketRing, type PacketSocket } from "../../proc/sock-diag.ts";
import { F_SETFL, O_CLOEXEC, O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import * as packet from "../../sys/abi/packet.ts";
import * as so from "../../sys/abi/socket.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { SIOCINQ } from "../../sys/abi/inet.ts";
import { getOption } from "../../sys/socket.ts";
import { u32 } from "../../sys/netlink.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { FileKind, FilesDump, FilesRestore, OpenFile } from "../files/file-kind.ts";
import { readOwner, restoreOwner } from "../files/owner.ts";
import { optionReader, restoreFurtherOptions, socketOptions } from "./further-options.ts";
import { askedOnce, familyOf, FURTHER_PACKET } from "./socket-answers.ts";
import { refusedSocket } from "./socket-refusal.ts";
import { collectOptions, restoreOptions, restoreReuse } from "./socket-options.ts";
import { inSocketNamespace, socketNamespace, type SocketNamespace } from "./socket-namespace.ts";

export const packetKind: FileKind = {
  name: "packet socket",
  type: FdTypes.PACKETSK,
  recognise: (file, dump) =>
    file.target.startsWith("socket:[") && familyOf(file, dump) === so.AF_PACKET,
  write: (file, id, dump) =>
    askedOnce(dump.borrow(file), so.AF_PACKET, () => writePacket(file, id, dump)),
  open: openPacket,
};

const listed = new WeakMap<SocketNamespace, ReadonlyMap<number, PacketSocket>>();

function writePacket(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const fd = dump.borrow(file);
  const namespace = socketNamespace(fd, dump);
  const socket = socketsIn(namespace).get(Number(file.stat.inode));
  if (socket === undefined)
    throw refusedSocket(file, "the kernel does not list it (NETLINK_SOCK_DIAG)");
  if (socket.memberships.some(({ count }) => count !== 1)) {
    throw refusedSocket(file, "a packet socket that has joined one group several times");
  }
  tellQueue(file, fd);
  const has = (flag: number): boolean => (socket.flags & flag) !== 0;
  const entry: PacketSockEntry = {
    id,
    type: socket.type,
    protocol: swap16(socket.protocol),
    flags: file.info.flags & ~O_CLOEXEC,
    ifindex: socket.device,
    fown: readOwner(file, dump),
    opts: collectOptions(file, fd, { family: so.AF_PACKET }),
    version: socket.version,
    reserve: socket.reserve,
    aux_data: has(packet.PDI_AUXDATA),
    orig_dev: has(packet.PDI_ORIGDEV),
    vnet_hdr: has(packet.PDI_VNETHDR),
    loss: has(packet.PDI_LOSS),
    timestamp: socket.timestamp,
    copy_thresh: socket.copyThreshold,
    mclist: socket.memberships.map(({ device, type, address }) => ({
      index: device,
      type,
      addr: hasAddress(type) ? address : Buffer.alloc(0),
    })),
    ...(socket.fanout === undefined ? {} : { fanout: socket.fanout }),
    ...(socket.receiveRing === undefined ? {} : { rx_ring: ringEntry(socket.receiveRing) }),
    ...(socket.sendRing === undefined ? {} : { tx_ring: ringEntry(socket.sendRing) }),
    ...(namespace.id === undefined ? {} : { ns_id: namespace.id }),
    options: [...furtherOptions(fd), ...generalOptions(fd, socket, { namespace, dump })],
  };
  return { type: FdTypes.PACKETSK, id, psk: entry };
}

function tellQueue({ task, fd, target }: OpenFile, copy: number): void {
  const next = Buffer.alloc(4);
  if (trySyscall("ioctl", copy, SIOCINQ, next) < 0 || next.readInt32LE(0) === 0) return;
  log.loss(`fd ${fd} of pid ${task.pid} (${target}): packets that it has not read yet are lost`);
}

function socketsIn(namespace: SocketNamespace): ReadonlyMap<number, PacketSocket> {
  const known = listed.get(namespace);
  if (known !== undefined) return known;
  const all = namespace.inside(() => readPacketSockets());
  const sockets = new Map(all.map((socket) => [socket.inode, socket]));
  listed.set(namespace, sockets);
  return sockets;
}

function ringEntry(ring: PacketRing): RingEntry {
  return {
    block_size: ring.blockSize,
    block_nr: ring.blocks,
    frame_size: ring.frameSize,
    frame_nr: ring.frames,
    retire_tmo: ring.retireTimeout,
    sizeof_priv: ring.privateSize,
    features: ring.features,
  };
}

function furtherOptions(fd: number): RepriseSocketOption[] {
  return FURTHER_PACKET.flatMap((name) => {
    const value = getOption(fd, { level: packet.SOL_PACKET, name, size: 4 });
    const isSet = typeof value !== "number" && value.some((byte) => byte !== 0);
    return isSet ? [{ level: packet.SOL_PACKET, name, value }] : [];
  });
}

function generalOptions(
  fd: number,
  { type, protocol }: PacketSocket,
  { namespace, dump }: { readonly namespace: SocketNamespace; readonly dump: FilesDump },
): readonly RepriseSocketOption[] {
  const kind = { family: so.AF_PACKET, type, proto: swap16(protocol) };
  return optionReader(dump).read(fd, kind, { places: socketOptions, namespace });
}

function openPacket(program: Program, { id, psk }: FileEntry, restore: FilesRestore): Argument {
  if (psk === undefined) throw new RepriseError("BAD_IMAGE", `file ${id} is no packet socket`);
  const what = `packet socket (file ${id})`;
  const fd = inSocketNamespace(program, { id: psk.ns_id, restore }, () =>
    program.call("socket", [so.AF_PACKET, psk.type | so.SOCK_CLOEXEC, psk.protocol], {
      label: `make ${what}`,
      hint: "The namespace needs CAP_NET_RAW.",
    }),
  );
  if (psk.type === packet.SOCK_PACKET) bindByName(program, psk, { fd, what });
  else {
    bind(program, psk, { fd, what });
    setUp(program, psk, { fd, what });
  }
  const label = `restore the flags of ${what}`;
  program.call("fcntl", [fd, F_SETFL, psk.flags & O_NONBLOCK], { label });
  restoreReuse(program, psk.opts, { fd, what });
  restoreOptions(program, psk.opts, { fd, what });
  const general = psk.options.filter(({ level }) => level === so.SOL_SOCKET);
  restoreFurtherOptions(program, general, { fd, what });
  restoreOwner(program, psk.fown, fd);
  return fd;
}

interface Made {
  readonly fd: Argument;
  readonly what: string;
}

/** struct sockaddr_ll: family, protocol, device. */
function bind(program: Program, entry: PacketSockEntry, { fd, what }: Made): void {
  if (entry.ifindex === 0) return;
  const address = Buffer.alloc(packet.SOCKADDR_LL_SIZE);
  address.writeUInt16LE(so.AF_PACKET, 0);
  address.writeUInt16LE(entry.protocol & 0xffff, 2);
  address.writeInt32LE(entry.ifindex, 4);
  program.call("bind", [fd, program.data(address), address.length], {
    label: `bind ${what} to device ${entry.ifindex}`,
    hint: "The device must exist, with the same index.",
  });
}

/** The old type wants the device's name, which the kernel tells by its index: struct ifreq begins with it. */
function bindByName(program: Program, entry: PacketSockEntry, { fd, what }: Made): void {
  if (entry.ifindex === 0) return;
  const label = `bind ${what} to device ${entry.ifindex}`;
  const address = Buffer.alloc(2 + SIZEOF_IFREQ);
  address.writeUInt16LE(so.AF_PACKET, 0);
  address.writeInt32LE(entry.ifindex, 2 + so.IFNAMSIZ);
  // struct sockaddr, in whose 14 bytes the name ends as the kernel has it.
  const place = program.data(address);
  const name = { ...place, offset: place.offset + 2 };
  program.call("ioctl", [fd, SIOCGIFNAME, name], { label });
  program.call("bind", [fd, place, SOCKADDR_SIZE], { label });
}

function setUp(program: Program, entry: PacketSockEntry, { fd, what }: Made): void {
  const set = (name: number, value: Uint8Array, option: string): void => {
    const args = [fd, packet.SOL_PACKET, name, program.data(value), value.length];
    program.call("setsockopt", args, { label: `set ${option} of ${what}` });
  };
  const flag = (name: number, isSet: boolean, option: string): void => {
    if (isSet) set(name, u32(1), option);
  };
  set(packet.PACKET_VERSION, u32(entry.version), "PACKET_VERSION");
  set(packet.PACKET_RESERVE, u32(entry.reserve), "PACKET_RESERVE");
  set(packet.PACKET_TIMESTAMP, u32(entry.timestamp), "PACKET_TIMESTAMP");
  set(packet.PACKET_COPY_THRESH, u32(entry.copy_thresh), "PACKET_COPY_THRESH");
  flag(packet.PACKET_AUXDATA, entry.aux_data, "PACKET_AUXDATA");
  flag(packet.PACKET_ORIGDEV, entry.orig_dev, "PACKET_ORIGDEV");
  flag(packet.PACKET_VNET_HDR, entry.vnet_hdr, "PACKET_VNET_HDR");
  flag(packet.PACKET_LOSS, entry.loss, "PACKET_LOSS");
  for (const { level, name, value } of entry.options) {
    if (level === packet.SOL_PACKET) set(name, value, `option ${name}`);
  }
  for (const { index, type, addr } of entry.mclist) {
    const request = Buffer.alloc(packet.PACKET_MREQ_SIZE);
    request.writeInt32LE(index, 0);
    request.writeUInt16LE(type, 4);
    request.writeUInt16LE(addr.length, 6);
    request.set(addr.subarray(0, 32), 8);
    set(packet.PACKET_ADD_MEMBERSHIP, request, "PACKET_ADD_MEMBERSHIP");
  }
  if (entry.rx_ring !== undefined)
    set(packet.PACKET_RX_RING, ringRequest(entry.rx_ring), "PACKET_RX_RING");
  if (entry.tx_ring !== undefined)
    set(packet.PACKET_TX_RING, ringRequest(entry.tx_ring), "PACKET_TX_RING");
  if (entry.fanout !== undefined && entry.fanout !== NO_FANOUT) {
    set(packet.PACKET_FANOUT, u32(entry.fanout), "PACKET_FANOUT");
  }
}

/** What the images have for none. */
const NO_FANOUT = 0xffff_ffff;
const SIOCGIFNAME = 0x8910;
const SIZEOF_IFREQ = 40;
const SOCKADDR_SIZE = 16;

/** struct tpacket_req3. */
function ringRequest(entry: RingEntry): Buffer {
  const { block_size, block_nr, frame_size, frame_nr, retire_tmo, sizeof_priv, features } = entry;
  const words = [block_size, block_nr, frame_size, frame_nr, retire_tmo, sizeof_priv, features];
  return Buffer.concat(words.map(u32));
}

function hasAddress(type: number): boolean {
  return type === packet.PACKET_MR_MULTICAST || type === packet.PACKET_MR_UNICAST;
}

/** A protocol in network order, as socket(2) takes it and the images hold it. */
function swap16(value: number): number {
  return ((value & 0xff) << 8) | (value >> 8);
}
