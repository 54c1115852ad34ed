// What the options about page transfer stand for: --page-server, --address, --port, --ps-socket, --status-fd, --daemon.

import { closeSync, writeFileSync, writeSync } from "node:fs";
import type { PageServerPlace } from "../engine/page-client.ts";
import { RepriseError } from "../errors.ts";
import { errnoOf } from "../proc/procfs.ts";
import { log } from "../log.ts";
import { trySyscall } from "../sys/ffi.ts";
import { accept, connectTcp, isListening, listenTcp, type StreamAddress } from "../sys/stream.ts";
import { numberValue, type CriuOptions } from "./options.ts";

/** Every interface. */
const ANY = "0.0.0.0";

/** The page server that a dump or a daemon talks to; undefined without --page-server. */
export async function pageServerPlace(options: CriuOptions): Promise<PageServerPlace | undefined> {
  if (!options.flags.has("page-server")) return undefined;
  const connection = numberValue(options, "ps-socket", 0);
  if (connection !== undefined) return { connection };
  const address = options.values.address;
  const port = numberValue(options, "port", 0) ?? 0;
  if (address === undefined || port === 0) {
    throw new RepriseError("BAD_ARGUMENT", "the page server's address is not specified", {
      hint: "Give --address and --port with --page-server.",
    });
  }
  const place = await resolveAddress(address, port);
  if (!options.flags.has("tls")) return place;
  const { secure } = await import("./tls.ts");
  return { connection: secure(connectTcp(place), "client", options) };
}

/** Where a server listens. */
export async function listenAddress(options: CriuOptions): Promise<StreamAddress> {
  const port = numberValue(options, "port", 0) ?? 0;
  return resolveAddress(options.values.address ?? ANY, port);
}

/**
 * Makes the socket of a server that takes one connection; a socket that was given may be that connection.
 *
 * @returns a function that tells whoever wants to know, and --status-fd, that the server is ready, and waits for the connection
 */
export async function listenFor(
  options: CriuOptions,
  onReady: () => void = () => undefined,
): Promise<() => number> {
  const given = numberValue(options, "ps-socket", 0);
  const address = await listenAddress(options);
  const tls = options.flags.has("tls") ? await import("./tls.ts") : undefined;
  const secured = (connection: number): number =>
    tls === undefined ? connection : tls.secure(connection, "server", options);
  return () => {
    if (given !== undefined && !isListening(given)) {
      onReady();
      tellReady(options);
      return secured(given);
    }
    const listener = given ?? listen(address);
    onReady();
    tellReady(options);
    const connection = accept(listener);
    trySyscall("close", listener);
    return secured(connection);
  };
}

function listen(address: StreamAddress): number {
  const { fd, port } = listenTcp(address);
  log.info(`listens at ${address.address} port ${port}`);
  return fd;
}

async function resolveAddress(address: string, port: number): Promise<StreamAddress> {
  // Loaded here: that takes 2 ms, and few runs talk to a server.
  const [{ isIP }, { lookup }] = await Promise.all([
    import("node:net"),
    import("node:dns/promises"),
  ]);
  if (isIP(address) !== 0) return { address, port };
  try {
    return { address: (await lookup(address)).address, port };
  } catch (error) {
    throw new RepriseError("BAD_ARGUMENT", `cannot find the address of ${address}`, {
      hint: "--address is an IP address or the name of a host.",
      cause: error,
    });
  }
}

/** Tells whoever started a server that it can be connected to: a zero byte, then the end. */
export function tellReady(options: CriuOptions): void {
  const fd = numberValue(options, "status-fd", 0);
  if (fd === undefined) return;
  try {
    writeSync(fd, Buffer.alloc(1));
    closeSync(fd);
  } catch (error) {
    throw new RepriseError(
      "BAD_ARGUMENT",
      `cannot write to --status-fd ${fd}: ${errnoOf(error) ?? "unknown error"}`,
      { cause: error },
    );
  }
}

/** Writes a server's pid where --pidfile says. */
export function writeServerPid(options: CriuOptions, pid: number): void {
  const path = options.values.pidfile;
  if (path === undefined) return;
  try {
    writeFileSync(path, String(pid), { mode: 0o600 });
  } catch (error) {
    const errno = errnoOf(error) ?? "unknown error";
    throw new RepriseError("BAD_ARGUMENT", `cannot write pidfile ${path}: open: ${errno}`, {
      cause: error,
    });
  }
}
