// Requests about one network device, and their errors: in the namespace that is being filled, or in the engine's own, where the
// devices of the caller are.

import { RepriseError } from "../../errors.ts";
import type { NetDeviceEntry, NetnsEntry } from "../../images/schema/messages.generated.ts";
import { NLM_F_CREATE, NLM_F_EXCL } from "../../sys/abi/netlink.ts";
import * as rt from "../../sys/abi/rtnetlink.ts";
import { errnoName } from "../../sys/errno.ts";
import { attribute, type NetlinkSocket } from "../../sys/netlink.ts";
import { basics, further } from "./link-attributes.ts";
import { linkHeader } from "./link-header.ts";
import { readLinks, type Link } from "./links.ts";

/** A namespace that is being filled. */
export interface FilledNamespace {
  /** Number in the images. */
  readonly id: number;
  readonly fd: number;
  /** Netlink socket in it. */
  readonly socket: NetlinkSocket;
  readonly netns: NetnsEntry;
  readonly devices: readonly NetDeviceEntry[];
}

/** A device of a namespace. */
export interface PlacedDevice {
  readonly namespace: FilledNamespace;
  readonly device: NetDeviceEntry;
}

/** A device to be made. */
export interface NewLink {
  readonly kind: string;
  /** What is special to its kind. */
  readonly data: readonly Buffer[];
  readonly more?: readonly Buffer[];
}

/** What is to become of a device that is there. */
export interface LinkChange {
  /** For errors: `add to its master`. */
  readonly doing: string;
  readonly parts: readonly Buffer[];
  /** Of the request. @default RTM_SETLINK */
  readonly type?: number;
}

/** The same, with all that it says. */
interface WholeChange extends LinkChange {
  readonly device: NetDeviceEntry;
  readonly index: number;
  readonly flags: number;
  /** Flags of the request. @default 0 */
  readonly request?: number;
}

export class LinkRequests {
  /** In the engine's own namespace. */
  readonly #home: NetlinkSocket;

  constructor(home: NetlinkSocket) {
    this.#home = home;
  }

  /** Makes a device, by `from` where that is another namespace's. */
  create(
    {
      device,
      namespace,
      from = namespace.socket,
    }: PlacedDevice & { readonly from?: NetlinkSocket },
    { kind, data, more = [] }: NewLink,
  ): void {
    const body = linkHeader(device.ifindex, device.flags & ~rt.IFF_UP);
    const info = attribute(rt.IFLA_LINKINFO, [
      attribute(rt.IFLA_INFO_KIND, kind),
      attribute(rt.IFLA_INFO_DATA, data),
    ]);
    const answer = from.tryRequest({
      type: rt.RTM_NEWLINK,
      flags: NLM_F_CREATE | NLM_F_EXCL,
      body: Buffer.concat([body, ...basics(device), ...further(device), ...more, info]),
    });
    if (typeof answer === "number") throw refused(device, `make a device of kind ${kind}`, answer);
  }

  set({ device, namespace }: PlacedDevice, change: LinkChange): void {
    const flags = device.flags & ~rt.IFF_UP;
    this.send(namespace, { ...change, device, index: device.ifindex, flags });
  }

  /** A device that the caller has made may have another index. */
  setByName({ device, namespace }: PlacedDevice, parts: readonly Buffer[]): void {
    const flags = device.flags & ~rt.IFF_UP;
    this.send(namespace, { device, doing: "set", index: 0, flags, parts });
  }

  send(
    { socket }: FilledNamespace,
    { device, doing, index, flags, parts, type = rt.RTM_SETLINK, request = 0 }: WholeChange,
  ): void {
    const answer = socket.tryRequest({
      type,
      flags: request,
      body: Buffer.concat([linkHeader(index, flags), ...parts]),
    });
    if (typeof answer === "number") throw refused(device, doing, answer);
  }

  /** Changes a device of the engine's namespace, which `device` has to do with; `up` brings it up. */
  sendHome(
    device: NetDeviceEntry,
    { doing, index, parts, up }: LinkChange & { readonly index: number; readonly up: boolean },
  ): void {
    const change = up ? rt.IFF_UP : 0;
    const body = linkHeader(index, change, change);
    const answer = this.#home.tryRequest({
      type: rt.RTM_SETLINK,
      body: Buffer.concat([body, ...parts]),
    });
    if (typeof answer === "number") throw refused(device, doing, answer);
  }

  homeIndex(device: NetDeviceEntry, name: string): number {
    return this.homeLink(device, name).index;
  }

  /** A device of the engine's namespace. @throws RepriseError BAD_ARGUMENT when it is not there */
  homeLink(device: NetDeviceEntry, name: string): Link {
    const found = readLinks(this.#home).find((link) => link.name === name);
    if (found !== undefined) return found;
    throw new RepriseError(
      "BAD_ARGUMENT",
      `cannot restore network device ${device.name}: there is no device ${name} here`,
      { hint: "It is named by --external; make it before the restore." },
    );
  }
}

function refused({ name }: NetDeviceEntry, doing: string, error: number): RepriseError {
  return new RepriseError(
    "SYSCALL",
    `cannot ${doing}: network device ${name}: netlink: ${errnoName(-error)}`,
    {
      errno: errnoName(-error),
      hint: "The kernel may lack this kind of device, or a device of this name or index may be there already.",
    },
  );
}
