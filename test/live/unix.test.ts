import { testRoom } from "./suite.ts";

testRoom("unix");
