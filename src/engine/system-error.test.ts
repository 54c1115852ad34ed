import { mkdirSync, readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { RepriseError } from "../errors.ts";
import { asRepriseError } from "./system-error.ts";

function thrown(run: () => unknown): unknown {
  try {
    run();
  } catch (error) {
    return error;
  }
  throw new Error("nothing was thrown");
}

test("asRepriseError() tells call, path and errno of a node error, and keeps it as the cause", () => {
  const cause = thrown(() => mkdirSync("/dev/null/images"));
  expect(asRepriseError(cause, "dump pid 42")).toMatchObject({
    code: "SYSCALL",
    message: "cannot dump pid 42: mkdir /dev/null/images: ENOTDIR",
    syscall: "mkdir",
    errno: "ENOTDIR",
    hint: expect.stringContaining("directory") as string,
    cause,
  });
  const missing = asRepriseError(
    thrown(() => readFileSync("/no/such")),
    "read it",
  );
  expect(missing).toMatchObject({ message: "cannot read it: open /no/such: ENOENT" });
});

test("asRepriseError() says what a system call of ours was for, where nobody else has", () => {
  const bare = new RepriseError("SYSCALL", "openat: EROFS", { syscall: "openat", errno: "EROFS" });
  expect(asRepriseError(bare, "dump pid 42")).toMatchObject({
    code: "SYSCALL",
    message: "cannot dump pid 42: openat: EROFS",
    errno: "EROFS",
    cause: bare,
  });
});

test("asRepriseError() leaves our own errors, bugs and other values alone", () => {
  const own = new RepriseError("BAD_IMAGE", "cannot");
  const bug = new TypeError("x is undefined");
  for (const value of [own, bug, "text", undefined]) {
    expect(asRepriseError(value, "dump")).toBe(value);
  }
});
