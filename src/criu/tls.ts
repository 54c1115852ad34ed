// --tls: page transfer by TLS from the first byte, with certificates on both sides, as CRIU does it. The engine talks over plain
// blocking sockets; a process of its own stands between such a socket and the network.

import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { Socket } from "node:net";
import { connect, TLSSocket, type TlsOptions } from "node:tls";
import { RepriseError } from "../errors.ts";
import { decodePageMessage, PAGE_COMMAND_SIZE, PageCommand } from "../images/page-protocol.ts";
import { PAGE_SIZE, PE_PRESENT } from "../images/pagemap.ts";
import { AF_UNIX, SOCK_STREAM } from "../sys/abi/socket.ts";
import { trySyscall } from "../sys/ffi.ts";
import { socketPair } from "../sys/socket.ts";
import type { CriuOptions } from "./options.ts";

/** Where CRIU looks for what is not given. */
const CA_CERTIFICATE = "/etc/pki/CA/cacert.pem";
const REVOKED = "/etc/pki/CA/cacrl.pem";
const CERTIFICATE = "/etc/pki/criu/cert.pem";
const KEY = "/etc/pki/criu/private/key.pem";

/** The hidden action of the process in between; its sockets have these numbers. */
const BRIDGE_ACTION = "tls-bridge";
const NETWORK_FD = 3;
const PLAIN_FD = 4;

export type TlsSide = "client" | "server";

/**
 * Puts TLS on a connection, which belongs to the process in between from now on.
 *
 * @returns the plain end
 * @throws RepriseError SYSCALL, BAD_ARGUMENT for certificates that cannot be read
 */
export function secure(connection: number, side: TlsSide, options: CriuOptions): number {
  credentials(options);
  const [plain, far] = socketPair(AF_UNIX, SOCK_STREAM);
  const child = spawn(
    process.execPath,
    [...process.execArgv, process.argv[1] ?? "", BRIDGE_ACTION, side, ...tlsArguments(options)],
    { stdio: ["ignore", "ignore", "inherit", connection, far] },
  );
  child.unref();
  trySyscall("close", connection);
  trySyscall("close", far);
  return plain;
}

/** The process in between: ends when one of its sides does. Returns the exit code. */
export async function bridge(side: TlsSide, options: CriuOptions): Promise<number> {
  const network = new Socket({ fd: NETWORK_FD, readable: true, writable: true });
  // Messages are small, and each is waited for.
  network.setNoDelay(true);
  const plain = new Socket({ fd: PLAIN_FD, readable: true, writable: true });
  // CRIU takes the tickets that a TLS 1.3 server sends after the handshake for an error.
  const maxVersion = "TLSv1.2" as const;
  const given = { ...credentials(options), rejectUnauthorized: true, maxVersion };
  const host = options.values.address;
  const secured =
    side === "server"
      ? new TLSSocket(network, { ...given, isServer: true, requestCert: true })
      : connect({
          ...given,
          socket: network,
          ...(host === undefined ? {} : { host }),
          ...(options.flags.has("tls-no-cn-verify")
            ? { checkServerIdentity: () => undefined }
            : {}),
        });
  return new Promise((resolve) => {
    const fail = (error: Error): void => {
      process.stderr.write(`Error: TLS with the other side failed: ${error.message}\n`);
      secured.destroy();
      plain.destroy();
      resolve(1);
    };
    secured.once("error", fail);
    plain.once("error", fail);
    secured.once("close", () => resolve(0));
    secured.pipe(plain);
    forward(plain, secured).catch(fail);
  });
}

/**
 * CRIU waits for the socket between a message and its pages, and not for what its TLS library has read already: so each message
 * goes into a record of its own, and each record of pages ends where a pipe of CRIU's may be full.
 */
async function forward(plain: Socket, secured: TLSSocket): Promise<void> {
  const records = new Records();
  for await (const chunk of plain) {
    for (const record of records.add(chunk as Buffer))
      await new Promise<void>((resolve, reject) =>
        secured.write(record, (error) => (error ? reject(error) : resolve())),
      );
  }
  secured.end();
}

/** The largest record. */
const RECORD_BYTES = 16 * 1024;

/** Cuts what the page protocol sends into records. */
class Records {
  #pending: Buffer = Buffer.alloc(0);
  /** Bytes of pages that are still to come. */
  #pages = 0;

  *add(chunk: Buffer): Generator<Buffer> {
    this.#pending = Buffer.concat([this.#pending, chunk]);
    for (;;) {
      const size = this.#nextSize();
      if (size === 0) return;
      const record = this.#pending.subarray(0, size);
      this.#pending = this.#pending.subarray(size);
      if (this.#pages > 0) this.#pages -= size;
      else if (size === PAGE_COMMAND_SIZE) this.#pages = pagesBehind(record);
      yield record;
    }
  }

  /** 0: wait for more. Answers are shorter than messages, and nothing follows them before the next question. */
  #nextSize(): number {
    const { length } = this.#pending;
    const wanted = this.#pages > 0 ? Math.min(this.#pages, RECORD_BYTES) : PAGE_COMMAND_SIZE;
    if (length >= wanted) return wanted;
    const isAnswer = this.#pages === 0 && (length === 1 || length === 4);
    return isAnswer ? length : 0;
  }
}

function pagesBehind(header: Buffer): number {
  const { command, flags, pages } = decodePageMessage(header);
  const hasPages = command === PageCommand.ADD_F && (flags & PE_PRESENT) !== 0;
  return hasPages || command === PageCommand.ADD ? pages * PAGE_SIZE : 0;
}

function credentials(options: CriuOptions): Pick<TlsOptions, "ca" | "cert" | "key" | "crl"> {
  const { values } = options;
  const crl = values["tls-cacrl"] ?? (existsSync(REVOKED) ? REVOKED : undefined);
  // Without one, those that the system trusts.
  const ca = values["tls-cacert"] ?? (existsSync(CA_CERTIFICATE) ? CA_CERTIFICATE : undefined);
  return {
    ...(ca === undefined ? {} : { ca: readPem(ca, "tls-cacert") }),
    cert: readPem(values["tls-cert"] ?? CERTIFICATE, "tls-cert"),
    key: readPem(values["tls-key"] ?? KEY, "tls-key"),
    ...(crl === undefined ? {} : { crl: readPem(crl, "tls-cacrl") }),
  };
}

function readPem(path: string, option: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    throw new RepriseError("BAD_ARGUMENT", `cannot read ${path}, which --tls needs`, {
      hint: `Give another file with --${option}.`,
      cause: error,
    });
  }
}

/** The options that the process in between needs, with paths that hold in any directory. */
function tlsArguments({ values, flags }: CriuOptions): string[] {
  const names = ["tls-cacert", "tls-cacrl", "tls-cert", "tls-key", "address"] as const;
  return [
    "--no-default-config",
    ...names.flatMap((name) => (values[name] === undefined ? [] : [`--${name}`, values[name]])),
    ...(flags.has("tls-no-cn-verify") ? ["--tls-no-cn-verify"] : []),
  ];
}
