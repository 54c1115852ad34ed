// What a socket has told already while its room writes it ahead (sockets-ahead.ts): rooms ask here before they ask the kernel.

import { POLLERR, POLLHUP } from "../../sys/abi/poll.ts";
import { pollNow } from "../../sys/poll.ts";
import type { ToldSocket } from "./room-ahead.ts";

/** A socket that has been asked already, of which the engine has the copy `fd`. */
let told: { readonly fd: number; readonly socket: ToldSocket } | undefined;

/** Runs a step that looks at a socket that has been asked already. */
export function asTold<T>(fd: number, socket: ToldSocket, step: () => T): T {
  told = { fd, socket };
  try {
    return step();
  } finally {
    told = undefined;
  }
}

/** What a socket has told, if it has been asked already. */
export function toldOf(fd: number): ToldSocket | undefined {
  return told?.fd === fd ? told.socket : undefined;
}

/** Whether poll(2) tells one of some events of a socket; POLLERR and POLLHUP are told unasked. */
export function eventsOf(fd: number, events = 0): number {
  const known = toldOf(fd)?.events;
  return known === undefined ? pollNow(fd, events) : known & (events | POLLERR | POLLHUP);
}
