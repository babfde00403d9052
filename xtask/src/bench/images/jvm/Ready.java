package bench;

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.Map;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.web.servlet.context.ServletWebServerApplicationContext;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.RestController;

/** Starts the server on any port, asks it once and ends. */
@SpringBootApplication
@RestController
public class Ready {
    @GetMapping("/")
    Map<String, Integer> answer() {
        return Map.of("answer", 42);
    }

    public static void main(String[] arguments) throws Exception {
        SpringApplication application = new SpringApplication(Ready.class);
        application.setDefaultProperties(Map.of("server.port", "0", "server.address", "127.0.0.1"));
        ServletWebServerApplicationContext context =
                (ServletWebServerApplicationContext) application.run(arguments);
        URI address = URI.create("http://127.0.0.1:" + context.getWebServer().getPort() + "/");
        HttpResponse<String> response = HttpClient.newHttpClient()
                .send(HttpRequest.newBuilder(address).build(), HttpResponse.BodyHandlers.ofString());
        System.out.println("ready " + response.body());
        System.exit(0);
    }
}
