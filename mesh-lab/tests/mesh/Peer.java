import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

/** The JDK's own HTTP server, which answers with its client's address, and the JDK's own HTTP client. */
public class Peer {
    public static void main(String[] arguments) throws Exception {
        if (arguments[0].equals("serve")) {
            var server = HttpServer.create(new InetSocketAddress(Integer.parseInt(arguments[1])), 0);
            server.createContext("/", exchange -> {
                var body = exchange.getRemoteAddress().getAddress().getHostAddress().getBytes();
                exchange.sendResponseHeaders(200, body.length);
                exchange.getResponseBody().write(body);
                exchange.close();
            });
            server.start();
            return;
        }
        var client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        for (var index = 1; index < arguments.length; index++) {
            var request = HttpRequest.newBuilder(URI.create(arguments[index])).build();
            System.out.println(client.send(request, BodyHandlers.ofString()).body());
        }
    }
}
