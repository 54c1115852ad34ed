import { testRoom } from "./suite.ts";

testRoom("memory");
