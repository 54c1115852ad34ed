import { describe, expect, it } from "vitest";
import { AF_INET, AF_INET6 } from "../../sys/abi/socket.ts";
import {
  addressBytes,
  addressWords,
  endpoint,
  sockaddr,
  readSockaddr,
  unmapped,
} from "./inet-address.ts";

const V4 = { family: AF_INET, port: 8080, bytes: Uint8Array.of(192, 0, 2, 7), scope: 0 };
const V6 = {
  family: AF_INET6,
  port: 443,
  bytes: Uint8Array.of(0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x2a),
  scope: 3,
};
const MAPPED = {
  family: AF_INET6,
  port: 80,
  bytes: Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7),
  scope: 0,
};

describe("addresses", () => {
  it("are read from the sockaddr that is made of them", () => {
    for (const address of [V4, V6, MAPPED]) {
      const read = readSockaddr(sockaddr(address));
      expect({ ...read, bytes: [...(read?.bytes ?? [])] }).toEqual({
        ...address,
        bytes: [...address.bytes],
      });
    }
    expect(sockaddr(V4)).toHaveLength(16);
    expect(sockaddr(V6)).toHaveLength(28);
    expect(readSockaddr(Buffer.alloc(28))).toBeUndefined();
  });

  it("lie in the images as words of memory", () => {
    expect(addressWords(V4.bytes)).toEqual([0x070200c0]);
    expect(addressWords(V6.bytes)).toEqual([0xb80d0120, 0, 0, 0x2a000000]);
    for (const { family, bytes } of [V4, V6]) {
      expect([...addressBytes(family, addressWords(bytes))]).toEqual([...bytes]);
    }
  });

  it("are shown as people write them", () => {
    expect(endpoint(V4)).toEqual({ family: "ipv4", address: "192.0.2.7", port: 8080 });
    expect(endpoint(V6).address).toBe("2001:db8:0:0:0:0:0:2a");
    expect(endpoint(MAPPED).address).toBe("::ffff:192.0.2.7");
  });

  it("of IPv4 in an IPv6 socket are those of IPv4 on the wire", () => {
    const wire = unmapped(MAPPED);
    expect({ ...wire, bytes: [...wire.bytes] }).toEqual({ ...V4, port: 80, bytes: [...V4.bytes] });
    expect(unmapped(V6)).toBe(V6);
  });
});
