// tun and tap devices (Documentation/networking/tuntap.rst). The device is made by attaching a file of /dev/net/tun to its name,
// and goes with the last such file unless it is persistent. Some of its state can be asked only of an attached file.

import { closeSync, openSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type { ImageSetWriter } from "../../images/image-set.ts";
import type { NetDeviceEntry, TunLinkEntry } from "../../images/schema/messages.generated.ts";
import { IFLA_INFO_DATA } from "../../sys/abi/rtnetlink.ts";
import * as tun from "../../sys/abi/tun.ts";
import { errnoName } from "../../sys/errno.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { attributes } from "../../sys/netlink.ts";
import type { Link } from "./links.ts";

const TUN_PATH = "/dev/net/tun";

/** What only an attached file tells. */
export interface TunState {
  readonly headerSize: number;
  readonly sendBuffer: number;
  /** IFF_NAPI, IFF_NAPI_FRAGS: told by files alone. */
  readonly further: number;
}

/** States of the devices of one namespace that files of the tree are attached to. */
export interface TunStates {
  of(device: string): TunState | undefined;
  /** Number of a user or group inside of the user namespace of the tree. */
  innerUid(uid: number): number;
  innerGid(gid: number): number;
}

const seenByDump = new WeakMap<ImageSetWriter, Map<string, TunState>>();

/** Where files leave what they know for the devices, which are written later. The key is the namespace's inode and the name. */
export function tunStatesOf(images: ImageSetWriter): Map<string, TunState> {
  const states = seenByDump.get(images) ?? new Map<string, TunState>();
  seenByDump.set(images, states);
  return states;
}

/** Asks an attached file. @throws RepriseError UNSUPPORTED for one with a filter, SYSCALL */
export function readTunState(fd: number, device: string, flags: number): TunState {
  if ((flags & tun.IFF_TAP) !== 0) {
    const filter = Buffer.alloc(16);
    // The length of a program that lies somewhere in a task's memory.
    must(device, "TUNGETFILTER", trySyscall("ioctl", fd, tun.TUNGETFILTER, filter));
    if (filter.readUInt16LE(0) !== 0) {
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot dump network device ${device}: it has a packet filter, which the kernel does not tell`,
        { hint: "Let the process take the filter off the tap device before the dump." },
      );
    }
  }
  const ask = (name: string, request: number): number => {
    const value = Buffer.alloc(4);
    must(device, name, trySyscall("ioctl", fd, request, value));
    return value.readInt32LE(0);
  };
  return {
    headerSize: ask("TUNGETVNETHDRSZ", tun.TUNGETVNETHDRSZ),
    sendBuffer: ask("TUNGETSNDBUF", tun.TUNGETSNDBUF),
    further: flags & (tun.IFF_NAPI | tun.IFF_NAPI_FRAGS),
  };
}

/** The device's part of its entry. The calling thread is in its namespace. @throws RepriseError UNSUPPORTED, SYSCALL */
export function tunLinkEntry(link: Link, states: TunStates): TunLinkEntry {
  const data = attributes(link.info.get(IFLA_INFO_DATA) ?? Buffer.alloc(0), 0);
  const flag = (attr: number, bit: number): number => (data.get(attr)?.[0] === 1 ? bit : 0);
  const owner = data.get(tun.IFLA_TUN_OWNER)?.readUInt32LE(0);
  const group = data.get(tun.IFLA_TUN_GROUP)?.readUInt32LE(0);
  const flags =
    (data.get(tun.IFLA_TUN_TYPE)?.[0] ?? tun.IFF_TUN) |
    (data.get(tun.IFLA_TUN_PI)?.[0] === 1 ? 0 : tun.IFF_NO_PI) |
    flag(tun.IFLA_TUN_VNET_HDR, tun.IFF_VNET_HDR) |
    flag(tun.IFLA_TUN_PERSIST, tun.IFF_PERSIST) |
    flag(tun.IFLA_TUN_MULTI_QUEUE, tun.IFF_MULTI_QUEUE);
  const state = states.of(link.name) ?? detachedState(link.name, flags);
  return {
    flags: flags | state.further,
    owner: owner === undefined ? -1 : states.innerUid(owner),
    group: group === undefined ? -1 : states.innerGid(group),
    vnethdr: state.headerSize,
    sndbuf: state.sendBuffer,
  };
}

/** Makes a device again, persistent until its file is there. The calling thread is in its namespace. */
export function makeTunDevice(
  entry: NetDeviceEntry,
  numbers: { outerUid(uid: number): number; outerGid(gid: number): number },
): void {
  const { tun: settings, name } = entry;
  if (settings === undefined) {
    throw new RepriseError("BAD_IMAGE", `network device ${name} has no tun settings`);
  }
  const fd = openTun(name);
  try {
    const set = (what: string, request: number, argument: number | Buffer): void =>
      must(name, what, trySyscall("ioctl", fd, request, argument), "restore");
    set("TUNSETIFINDEX", tun.TUNSETIFINDEX, word(entry.ifindex));
    set("TUNSETIFF", tun.TUNSETIFF, ifreq(name, settings.flags));
    if (settings.owner !== -1) {
      set("TUNSETOWNER", tun.TUNSETOWNER, numbers.outerUid(settings.owner));
    }
    if (settings.group !== -1) {
      set("TUNSETGROUP", tun.TUNSETGROUP, numbers.outerGid(settings.group));
    }
    set("TUNSETSNDBUF", tun.TUNSETSNDBUF, word(settings.sndbuf));
    set("TUNSETVNETHDRSZ", tun.TUNSETVNETHDRSZ, word(settings.vnethdr));
    set("TUNSETPERSIST", tun.TUNSETPERSIST, 1);
  } finally {
    closeSync(fd);
  }
}

/** struct ifreq with a device's name and flags. */
export function ifreq(name: string, flags: number): Buffer {
  const request = Buffer.alloc(tun.IFREQ_SIZE);
  request.write(name, 0, tun.IFREQ_FLAGS - 1, "latin1");
  request.writeUInt16LE(flags & 0xffff, tun.IFREQ_FLAGS);
  return request;
}

/** A device without files is attached to for a moment. */
function detachedState(device: string, flags: number): TunState {
  if ((flags & tun.IFF_PERSIST) === 0) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump network device ${device}: the process that holds it is outside of the tree`,
      { hint: "Dump the tree that this process is in, or take the device out of the namespace." },
    );
  }
  const fd = openTun(device);
  try {
    must(device, "TUNSETIFF", trySyscall("ioctl", fd, tun.TUNSETIFF, ifreq(device, flags)));
    return readTunState(fd, device, flags);
  } finally {
    closeSync(fd);
  }
}

function openTun(device: string): number {
  try {
    return openSync(TUN_PATH, "r+");
  } catch (error) {
    const errno = (error as NodeJS.ErrnoException).code ?? "EIO";
    throw new RepriseError(
      "SYSCALL",
      `cannot reach network device ${device} (${TUN_PATH}): openat: ${errno}`,
      { syscall: "openat", errno, hint: "Load the tun module (modprobe tun).", cause: error },
    );
  }
}

function must(device: string, call: string, result: number, doing = "dump"): void {
  if (result >= 0) return;
  throw new RepriseError(
    "SYSCALL",
    `cannot ${doing} network device ${device}: ${call}: ${errnoName(-result)}`,
    { syscall: "ioctl", errno: errnoName(-result) },
  );
}

function word(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value | 0);
  return bytes;
}
