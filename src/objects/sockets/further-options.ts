// Options of sockets that CRIU's images have no field for, as (level, name, value): those whose value is not that of a fresh socket
// of the same kind in the same network namespace, whose settings decide on some. All options of a socket are read by one
// call of the interpreter, since a dump asks for some fifty of each of perhaps thousands. See socket(7).

import { closeSync } from "node:fs";
import type { RepriseSocketOption } from "../../images/schema/messages.generated.ts";
import * as so from "../../sys/abi/socket.ts";
import { trySyscall } from "../../sys/ffi.ts";
import type { Program } from "../../tracee/program.ts";
import type { FilesDump } from "../files/file-kind.ts";
import { OptionQuestion, type OptionAnswers, type SocketOptionPlace } from "./option-question.ts";
import type { SocketNamespace } from "./socket-namespace.ts";
import { toldOf } from "./told.ts";
import { setOption, type SocketInProgram } from "./socket-options.ts";

/** What a socket is. */
export interface SocketKind {
  readonly family: number;
  readonly type: number;
  readonly proto: number;
}

const WORDS = [
  so.SO_DEBUG,
  so.SO_TIMESTAMP,
  so.SO_TIMESTAMPNS,
  so.SO_RXQ_OVFL,
  so.SO_WIFI_STATUS,
  so.SO_PEEK_OFF,
  so.SO_NOFCS,
  so.SO_LOCK_FILTER,
  so.SO_SELECT_ERR_QUEUE,
  so.SO_BUSY_POLL,
  so.SO_ZEROCOPY,
  so.SO_TIMESTAMP_NEW,
  so.SO_TIMESTAMPNS_NEW,
  so.SO_PREFER_BUSY_POLL,
  so.SO_RESERVE_MEM,
  so.SO_RCVMARK,
  so.SO_PASSPIDFD,
  so.SO_RCVPRIORITY,
  so.SO_PASSRIGHTS,
];

/** The new form of time stamps comes behind the old one, which would switch it off. */
const LONG_WORDS = [
  so.SO_MAX_PACING_RATE,
  so.SO_TXTIME,
  so.SO_TIMESTAMPING,
  so.SO_TIMESTAMPING_NEW,
];

/** Options of SOL_SOCKET, of every family; those that one does not have are passed over. */
export function socketOptions({
  isConnection = false,
}: { readonly isConnection?: boolean } = {}): SocketOptionPlace[] {
  const all = (names: readonly number[], size: number): SocketOptionPlace[] =>
    names.map((name) => ({ level: so.SOL_SOCKET, name, size }));
  return [
    ...all(WORDS, 4),
    // Of a connection it is where its last packet came in.
    ...all(isConnection ? [] : [so.SO_INCOMING_CPU], 4),
    ...all(LONG_WORDS, 8),
  ];
}

export interface WhichOptions {
  readonly places: () => readonly SocketOptionPlace[];
  /** Tells different lists for sockets of one kind. @default "" */
  readonly variant?: string;
  readonly namespace: SocketNamespace;
}

/** Reads options of the sockets of one dump. */
export class OptionReader {
  /** Of fresh sockets, by kind and namespace; undefined where none can be made. */
  readonly #usual = new Map<string, OptionAnswers | undefined>();

  /** Options of a socket whose value is not the usual one. */
  read(fd: number, kind: SocketKind, which: WhichOptions): readonly RepriseSocketOption[] {
    const { places, variant = "", namespace } = which;
    const name = `${kind.family}:${kind.type}:${kind.proto}:${variant}`;
    let question = questions.get(name);
    if (question === undefined) questions.set(name, (question = new OptionQuestion(places())));
    const key = `${namespace.inode}:${name}`;
    if (!this.#usual.has(key)) this.#usual.set(key, usualValues(kind, question, namespace));
    const usual = this.#usual.get(key);
    if (usual === undefined) return [];
    const told = toldOf(fd);
    if (told === undefined) return question.differences(fd, usual);
    told.made.further ??= question.differencesOf(told, usual);
    return told.made.further;
  }
}

const readers = new WeakMap<FilesDump, OptionReader>();

/** The reader of a dump. */
export function optionReader(dump: FilesDump): OptionReader {
  let reader = readers.get(dump);
  if (reader === undefined) readers.set(dump, (reader = new OptionReader()));
  return reader;
}

/** One for each kind of socket, for good. */
const questions = new Map<string, OptionQuestion>();

function usualValues(
  { family, type, proto }: SocketKind,
  question: OptionQuestion,
  namespace: SocketNamespace,
): OptionAnswers | undefined {
  return namespace.inside(() => {
    const fresh = trySyscall("socket", family, type | so.SOCK_CLOEXEC, proto);
    if (fresh < 0) return undefined;
    try {
      return question.answers(fresh);
    } finally {
      closeSync(fresh);
    }
  });
}

/** Adds the calls that set options again. One that this kernel does not take is left out. */
export function restoreFurtherOptions(
  program: Program,
  options: readonly RepriseSocketOption[],
  socket: SocketInProgram,
): void {
  for (const { level, name, value } of options) {
    const option = `option ${level}:${name}`;
    setOption(program, { ...socket, lenient: true }, { level, name, value, option });
  }
}
